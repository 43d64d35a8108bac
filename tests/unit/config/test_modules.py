"""Rules of one module: its degrees, its sizes, what it trains."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.config.base import divisors
from disagg_train.config.load import load_job
from disagg_train.config.modules import ParallelConfig
from tests.unit.config.jobs import JOB, refusal


def test_stages_that_do_not_divide_the_layers_are_refused_with_those_that_do() -> None:
    message = refusal("modules.language.parallel.pp=5", "groups.language.ranks=20")
    assert "pp=5 does not divide its " in message


INTERLEAVED = ("modules.language.parallel.vpp=2", "modules.language.parallel.pp=2")
FOUR_LAYERS = ("modules.language.model.num_layers=4", "groups.language.ranks=8")


def test_interleaving_is_for_the_llms_pipelines() -> None:
    for override in ("modules.vision.parallel.vpp=2", INTERLEAVED[0]):
        message = refusal(override)
        assert "only the LLM's pipelines are interleaved, and only with pp > 1" in message


def test_layers_must_divide_over_all_stages() -> None:
    message = refusal(*INTERLEAVED, *FOUR_LAYERS[1:], "modules.language.model.num_layers=6")
    assert "pp=2 * vpp=2 does not divide its 6 layers" in message


@pytest.mark.parametrize("schedule", ["zero_bubble", "gpipe"])
def test_an_interleaved_llm_takes_no_other_schedule(schedule: str) -> None:
    message = refusal(*INTERLEAVED, *FOUR_LAYERS, f"train.schedule={schedule}")
    assert "asks for the interleaved schedule; use vpp: 1 or schedule: 1f1b" in message


@pytest.mark.parametrize(
    ("field", "overrides"),
    [
        ("microbatches=3", ["train.microbatches=3"]),
        ("window=1", ["train.microbatches=2", "train.window=1"]),
    ],
)
def test_interleaved_microbatches_come_in_groups(field: str, overrides: list[str]) -> None:
    message = refusal(*INTERLEAVED, *FOUR_LAYERS, *overrides)
    assert f"train.{field} is no multiple of pp=2" in message


@pytest.mark.parametrize("axis", ["tp", "dp", "cp", "pp", "ep"])
def test_a_degree_below_one_is_refused(axis: str) -> None:
    message = refusal(f"modules.language.parallel.{axis}=0")
    assert message.startswith(f"modules.language.parallel.{axis}: ")


def test_heads_that_do_not_divide_the_width_are_refused_with_those_that_do() -> None:
    assert refusal("modules.vision.model.num_attention_heads=5") == (
        "modules.vision.model: num_attention_heads=5 does not divide hidden_size=32; "
        "use one of [1, 2, 4, 8, 16, 32]"
    )


def test_query_groups_that_do_not_divide_the_heads_are_refused_with_those_that_do() -> None:
    assert refusal("modules.language.model.num_query_groups=3") == (
        "modules.language.model: num_query_groups=3 does not divide num_attention_heads=8; "
        "use one of [1, 2, 4, 8]"
    )


def test_sizes_that_are_left_out_follow_from_the_others() -> None:
    model = load_job(JOB).language.model
    assert (model.ffn_size, model.query_groups) == (256, 8)


def test_embeddings_are_tied_only_where_the_job_says_so() -> None:
    assert not load_job(JOB).language.model.tie_embeddings
    assert load_job(
        JOB, ["modules.language.model.tie_embeddings=true"]
    ).language.model.tie_embeddings


def test_the_degrees_multiply_to_the_ranks_and_ep_adds_none() -> None:
    assert ParallelConfig(tp=2, dp=3).num_ranks == 6


@pytest.mark.parametrize(
    ("tp", "sp", "splits"), [(2, True, True), (1, True, False), (2, False, False)]
)
def test_tokens_are_split_only_where_several_tp_ranks_share_them(
    tp: int, sp: bool, splits: bool
) -> None:
    assert ParallelConfig(tp=tp, sp=sp).sequence_parallel is splits


@pytest.mark.parametrize(
    ("freeze", "freeze_projector", "trainable"),
    [
        ("false", "null", True),
        ("true", "null", False),
        ("true", "false", True),
        ("false", "true", True),
        ("true", "true", False),
    ],
)
def test_an_encoder_trains_unless_it_and_its_projector_are_frozen(
    freeze: str, freeze_projector: str, trainable: bool
) -> None:
    overrides = [
        f"modules.vision.freeze={freeze}",
        f"modules.vision.projector={{freeze: {freeze_projector}}}",
    ]
    assert load_job(JOB, overrides).modules["vision"].trainable is trainable


def test_a_frozen_llm_trains_nothing() -> None:
    assert load_job(JOB).language.trainable
    assert not load_job(JOB, ["modules.language.freeze=true"]).language.trainable


@given(st.integers(1, 200))
def test_divisors_are_all_numbers_that_divide(number: int) -> None:
    assert [number // d for d in reversed(divisors(number))] == divisors(number)
    assert all(number % d for d in set(range(1, number + 1)) - set(divisors(number)))


EXPERTS = ("modules.language.model.num_experts=4", "modules.language.parallel.sp=true")


def test_experts_are_as_wide_as_the_layer_unless_told_otherwise() -> None:
    assert load_job(JOB, EXPERTS).language.model.expert_ffn_size == 256
    told = [*EXPERTS, "modules.language.model.expert_ffn_hidden_size=48"]
    assert load_job(JOB, told).language.model.expert_ffn_size == 48


@pytest.mark.parametrize("lanes", [{"dp": 6}, {"dp": 2, "cp": 3}])
def test_expert_parallelism_regroups_the_lanes_and_adds_no_rank(lanes: dict[str, int]) -> None:
    assert [ParallelConfig(ep=ep, **lanes).num_ranks for ep in (1, 2, 3, 6)] == [6, 6, 6, 6]


def test_experts_that_cannot_be_shared_over_the_lanes_are_refused() -> None:
    assert refusal(*EXPERTS, "modules.language.parallel.ep=4") == (
        "modules.language.parallel: ep=4 does not divide dp*cp = 2*1 = 2; use one of [1, 2]"
    )


def test_experts_that_cannot_be_shared_evenly_are_refused() -> None:
    degrees = ["modules.language.parallel={dp: 4, ep: 4}", "modules.language.model.num_experts=6"]
    assert refusal(*degrees) == (
        "modules.language: ep=4 does not divide num_experts=6; use ep one of [1, 2]"
    )


def test_expert_parallelism_without_experts_is_refused() -> None:
    assert refusal("modules.language.parallel.ep=2") == (
        "modules.language: ep=2, but the model has no experts; set model.num_experts or use ep: 1"
    )
    assert refusal("modules.vision.parallel.ep=2") == (
        "modules.vision: ep=2, but the model has no experts; use ep: 1"
    )


def test_a_width_of_experts_without_experts_is_refused() -> None:
    assert refusal("modules.language.model.expert_ffn_hidden_size=48") == (
        "modules.language.model: expert_ffn_hidden_size=48, but there are no experts; "
        "set num_experts or use ffn_hidden_size"
    )


def test_more_experts_per_token_than_experts_are_refused() -> None:
    assert refusal(*EXPERTS, "modules.language.model.experts_per_token=5") == (
        "modules.language.model: experts_per_token=5 is more than num_experts=4; use at most 4"
    )


def test_experts_over_several_tp_ranks_need_sequence_parallelism() -> None:
    assert refusal(EXPERTS[0]) == (
        "modules.language: num_experts=4 with tp=2 needs sequence parallelism; "
        "set parallel.sp: true or tp: 1"
    )


def test_experts_that_tp_does_not_cut_evenly_are_refused() -> None:
    assert refusal(*EXPERTS, "modules.language.model.expert_ffn_hidden_size=25") == (
        "modules.language: tp=2 does not divide expert_ffn_hidden_size=25; use tp one of [1, 5, 25]"
    )


def test_a_module_computes_again_what_megatron_knows_to() -> None:
    assert load_job(JOB, ("modules.vision.recompute=full",)).modules["vision"].recompute == "full"
    message = refusal("modules.language.recompute=layer")
    assert "recompute" in message and "'none', 'selective' or 'full'" in message
