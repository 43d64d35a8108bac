"""What ranks hold beside activations, against hand-counted bytes."""

from typing import Any

import pytest

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import LANGUAGE
from disagg_train.config.load import load_job
from disagg_train.planner.memory import passing_bytes_per_token, state_bytes
from tests.unit.config.jobs import JOB

WIDTH, FFN, LAYERS, VOCABULARY = 64, 256, 2, 384
LAYER = 4 * WIDTH * WIDTH + 3 * WIDTH * FFN
TABLE = VOCABULARY * WIDTH
ALL = LAYERS * LAYER + 2 * TABLE


def held(ranks: int, parallel: str, *overrides: str, module: str = LANGUAGE) -> tuple[float, ...]:
    """Return the bytes of the stages of one module; the LLM's layout is given."""
    layout = [f"groups.language.ranks={ranks}", f"modules.language.parallel={{{parallel}}}"]
    return state_bytes(load_job(JOB, [*layout, *overrides]))[module]


@pytest.mark.parametrize(
    ("precision", "bytes_per_weight"),
    [("fp32", 4 + 4 + 8), ("bf16", 2 + 4 + 12), ("fp16", 2 + 4 + 12)],
)
def test_one_rank_holds_weights_gradients_and_adams_state(
    precision: str, bytes_per_weight: int
) -> None:
    assert held(1, "", f"train.precision={precision}") == (bytes_per_weight * ALL,)


def test_dp_and_cp_ranks_share_adams_state_alone() -> None:
    assert held(4, "dp: 4", "train.precision=bf16") == ((2 + 4 + 12 / 4) * ALL,)
    assert held(4, "dp: 2, cp: 2", "train.precision=bf16") == ((2 + 4 + 12 / 4) * ALL,)


def test_tp_ranks_share_everything() -> None:
    assert held(2, "tp: 2", "train.precision=bf16") == (18 * ALL / 2,)


def test_the_first_stage_has_the_embedding_and_the_last_the_output() -> None:
    first, second, last = held(3, "pp: 3", "modules.language.model.num_layers=3")
    assert first == last == 16 * (LAYER + TABLE)
    assert second == 16 * LAYER


def test_a_tied_matrix_is_held_once_by_one_stage_and_twice_by_two() -> None:
    tied = "modules.language.model.tie_embeddings=true"
    assert held(1, "", tied) == (16 * (ALL - TABLE),)
    assert sum(held(2, "pp: 2", tied)) == 16 * ALL


def test_ep_ranks_share_the_experts_of_a_layer_and_the_rest_is_whole() -> None:
    """4 experts, 2 to a rank, each on 2 of 4 ranks; attention is updated in 4 parts."""
    experts = ("modules.language.model.num_experts=4", "train.precision=bf16")
    attention = LAYERS * 4 * WIDTH * WIDTH + 2 * TABLE
    expert = LAYERS * 3 * WIDTH * FFN
    wanted = (6 + 12 / 4) * attention + (6 + 12 / 2) * 2 * expert
    assert held(4, "dp: 4, ep: 2", *experts) == (wanted,)


def test_frozen_weights_have_neither_gradients_nor_adams_state() -> None:
    frozen = ("modules.language.freeze=true", "train.precision=bf16")
    assert held(1, "", *frozen) == (2 * ALL,)


def test_low_rank_additions_have_gradients_and_their_matrices_none() -> None:
    lora = ("modules.language.lora={rank: 4}", "train.precision=bf16")
    ends = (WIDTH + 3 * WIDTH) + 2 * WIDTH + (WIDTH + 2 * FFN) + (FFN + WIDTH)
    assert held(1, "", *lora) == (2 * ALL + 18 * LAYERS * 4 * ends,)


def test_a_projector_is_trained_above_a_frozen_encoder() -> None:
    """A ViT of 2 layers of 32 on patches of 16 values, and a projector 32 -> 64 -> 64."""
    freeze = ("modules.vision.freeze=true", "modules.vision.projector.freeze=false")
    tower, projector = 2 * (4 * 32 * 32 + 2 * 32 * 128) + 16 * 32, 32 * 64 + 64 * 64
    (found,) = held(1, "", *freeze, "train.precision=bf16", module="vision")
    assert found == 2 * tower + (2 + 4 + 12 / 2) * projector, "dp 2"


def test_an_embedding_of_patches_and_a_linear_projector_are_whole_on_every_tp_rank() -> None:
    tp = ("modules.vision.parallel={tp: 2}", "modules.vision.projector={kind: linear}")
    (found,) = held(1, "", *tp, module="vision")
    assert found == 16 * (2 * (4 * 32 * 32 + 2 * 32 * 128) / 2 + 16 * 32 + 32 * 64)


def test_there_are_bytes_for_every_stage_of_the_graph() -> None:
    job = load_job(
        JOB,
        [
            "modules.language.model.num_layers=8",
            "modules.language.parallel={pp: 2, vpp: 2, dp: 2}",
            "modules.vision.parallel={pp: 2}",
        ],
    )
    graph = job_graph(job)
    for found in (state_bytes(job), passing_bytes_per_token(job)):
        for name, of_stages in found.items():
            assert len(of_stages) == sum(n.module == name for n in graph.nodes.values())
            assert min(of_stages) > 0


def test_nothing_is_known_of_encoders_of_ones_own() -> None:
    own: dict[str, Any] = {"kind": "package.module:Class", "group": "encoders"}
    job = load_job({**JOB, "modules": {**JOB["modules"], "vision": {**own, "parallel": {"dp": 2}}}})
    assert state_bytes(job)["vision"] == passing_bytes_per_token(job)["vision"] == (0.0,)


def test_three_messages_of_every_edge_and_logits_pass_through() -> None:
    """The LLM on one rank: rows of 64 values from the encoder; 384 logits, twice in bf16."""
    job = load_job(
        JOB,
        [
            "groups.language.ranks=1",
            "modules.language.parallel={}",
            "modules.language.model.vocab_size=3840",
            "train.precision=bf16",
        ],
    )
    wanted = 3 * WIDTH * 2 + 3840 * (2 + 2 + 4 + 4)
    assert passing_bytes_per_token(job)[LANGUAGE] == (wanted,)


def test_a_layer_that_is_computed_again_is_there_for_a_while() -> None:
    again = load_job(JOB, ["modules.vision.recompute=full"])
    kept = load_job(JOB)
    layer = 16 * 32 * 4
    (more,), (less,) = (passing_bytes_per_token(job)["vision"] for job in (again, kept))
    assert more - less == layer
