"""What layers cost beside their matrices, against hand-counted bytes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.config.load import load_job
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.machine import Machine
from disagg_train.planner.sample_costs import PassCost, StageCost
from disagg_train.schedule.ops import OpKind
from tests.unit.config.jobs import JOB

WIDTH, FFN, LAYERS, VOCABULARY, FP32 = 64, 256, 2, 384, 4
FREE = Machine(
    flops_per_s=1e30,
    link_bytes_per_s=1e30,
    latency_s=0.0,
    memory_bytes_per_s=1e30,
    node_bytes_per_s=1e29,
)
"""A machine on which all is for nothing, to charge for one thing at a time."""
LAYER_WEIGHTS = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * FFN)
FORWARD, INPUT, WEIGHT, WHOLE = (
    OpKind.FORWARD,
    OpKind.BACKWARD_INPUT,
    OpKind.BACKWARD_WEIGHT,
    OpKind.BACKWARD,
)


def stages(parallel: str, machine: Machine, *overrides: str) -> tuple[StageCost, ...]:
    """Return the costs of the LLM's stages."""
    degrees = dict(each.split(": ") for each in parallel.split(", ") if each)
    ranks = 1
    for axis in ("tp", "cp", "pp", "dp"):
        ranks *= int(degrees.get(axis, 1))
    job = load_job(
        JOB,
        [
            f"groups.language.ranks={ranks}",
            f"modules.language.parallel={{{parallel}}}",
            *overrides,
        ],
    )
    return costs_by_size(job, machine).modules["language"].stages


def passes(parallel: str, machine: Machine, *overrides: str) -> dict[OpKind, PassCost]:
    (stage,) = stages(parallel, machine, *overrides)
    return dict(stage.passes)


def test_tp_ranks_sum_rows_twice_per_layer_and_pass() -> None:
    """And once for the rows of the embedding, and once for the gradients behind the output."""
    found = passes("tp: 2", replace(FREE, node_bytes_per_s=1.0, latency_s=1.0))
    sent = (2 * LAYERS + 1) * 2 * (1 / 2) * WIDTH * FP32
    for kind in (FORWARD, INPUT):
        assert found[kind].per_token_s == pytest.approx(sent)
        assert found[kind].per_microbatch_s == pytest.approx(2 * LAYERS + 1)
    assert found[WEIGHT].per_token_s == pytest.approx(0.0)


def test_sp_sends_as_much_and_gathers_inputs_once_more_for_weights() -> None:
    machine = replace(FREE, node_bytes_per_s=1.0)
    plain, split = passes("tp: 2", machine), passes("tp: 2, sp: true", machine)
    assert plain[FORWARD].per_token_s == pytest.approx(split[FORWARD].per_token_s)
    gathered = (2 * LAYERS + 1) * (1 / 2) * WIDTH * FP32
    assert split[WEIGHT].per_token_s == pytest.approx(gathered)


def test_tp_beyond_a_node_goes_over_all_links_of_the_node() -> None:
    machine = replace(FREE, ranks_per_node=2, link_bytes_per_s=1.0, node_bytes_per_s=1e9)
    found = passes("tp: 4", machine)
    sent = (2 * LAYERS + 1) * 2 * (3 / 4) * WIDTH * FP32
    assert found[FORWARD].per_token_s == pytest.approx(sent / 2)


def test_keys_and_values_go_around_once_and_with_their_gradients_twice() -> None:
    """8 heads in 2 groups: keys and values are 16 wide each; tp and cp share them."""
    found = passes(
        "tp: 2, cp: 4",
        replace(FREE, node_bytes_per_s=1.0, latency_s=0.0),
        "modules.language.model.num_query_groups=2",
    )
    without = passes("tp: 2, cp: 4", replace(FREE, node_bytes_per_s=1.0))
    sums = (2 * LAYERS + 1) * WIDTH * FP32 / 4
    ring = LAYERS * 2 * 16 * FP32 / 2 * 3 / 4
    assert found[FORWARD].per_token_s == pytest.approx(sums + ring)
    assert found[INPUT].per_token_s == pytest.approx(sums + 2 * ring)
    assert without[FORWARD].per_token_s == pytest.approx(sums + 4 * ring), "8 groups, not 2"


def test_tokens_go_to_experts_and_back() -> None:
    """4 experts on 4 ranks, each token to 2 of them: 3 of 4 tokens leave their rank."""
    experts = ("modules.language.model.num_experts=4", "train.global_batch=16")
    machine = replace(FREE, node_bytes_per_s=1.0)
    found = passes("dp: 4, ep: 4", machine, *experts)
    sent = LAYERS * 2 * 2 * WIDTH * FP32 * 3 / 4
    assert found[FORWARD].per_token_s == pytest.approx(sent)
    assert found[INPUT].per_token_s == pytest.approx(sent)


def test_weights_are_read_once_per_pass_and_their_gradients_added_in_fp32() -> None:
    found = passes("", replace(FREE, memory_bytes_per_s=1.0))
    output = VOCABULARY * WIDTH
    assert found[FORWARD].per_microbatch_s == pytest.approx(FP32 * (LAYER_WEIGHTS + output))
    assert found[INPUT].per_microbatch_s == found[FORWARD].per_microbatch_s
    trained = LAYER_WEIGHTS + 2 * output
    assert found[WEIGHT].per_microbatch_s == pytest.approx((2 * FP32 + 8) * trained)


def test_element_wise_work_of_whole_rows_is_split_by_sp_alone() -> None:
    machine = replace(FREE, memory_bytes_per_s=1.0)
    rows = LAYERS * 10 * WIDTH + 2 * WIDTH
    shared = LAYERS * (2 * 2 * WIDTH + 3 * FFN) + 5 * VOCABULARY
    for parallel, values in (
        ("", rows + shared),
        ("tp: 2", rows + shared / 2),
        ("tp: 2, sp: true", (rows + shared) / 2),
        ("cp: 2", (rows + shared) / 2),
    ):
        found = passes(parallel, machine)
        assert found[FORWARD].per_token_s == pytest.approx(FP32 * values), parallel
        assert found[INPUT].per_token_s == pytest.approx(1.5 * FP32 * values), parallel


def test_layers_computed_again_do_all_of_it_again() -> None:
    machine = Machine(node_bytes_per_s=1e11, launch_s=1e-5)
    kept = passes("tp: 2, cp: 2", machine)
    again = passes("tp: 2, cp: 2", machine, "modules.language.recompute=full")
    added = again[INPUT].per_token_s - kept[INPUT].per_token_s
    ends = passes("tp: 2, cp: 2", machine, "modules.language.model.num_layers=4")
    layers = ends[FORWARD].per_token_s - kept[FORWARD].per_token_s
    assert added == pytest.approx(layers)


def test_every_layer_has_kernels_to_launch_in_every_pass() -> None:
    found = passes("", Machine(launch_s=1.0))
    launches = LAYERS + 1
    assert [found[kind].per_microbatch_s for kind in (FORWARD, INPUT, WEIGHT, WHOLE)] == [
        launches,
        launches,
        launches,
        2 * launches,
    ]


def test_where_nothing_is_known_of_nodes_matrices_are_all_that_counts() -> None:
    found = passes("tp: 2, cp: 2, dp: 2", Machine(flops_per_s=1e9))
    matrices = 2 * (LAYER_WEIGHTS + VOCABULARY * WIDTH) / 1e9 / 4
    assert found[FORWARD].per_token_s == pytest.approx(matrices)
    assert found[FORWARD].per_microbatch_s == 0.0


@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    sp=st.booleans(),
    recompute=st.sampled_from(["none", "selective", "full"]),
    freeze=st.booleans(),
)
def test_a_backward_is_the_sum_of_its_halves(
    tp: int, sp: bool, recompute: str, freeze: bool
) -> None:
    machine = Machine(node_bytes_per_s=1e11, launch_s=1e-5)
    more = (f"modules.language.recompute={recompute}", f"modules.language.freeze={freeze}")
    found = passes(f"tp: {tp}, sp: {str(sp).lower()}", machine, *more)
    assert found[WHOLE] == found[INPUT] + found[WEIGHT]
    assert (found[WEIGHT] == PassCost(0.0)) == freeze


@given(tp=st.sampled_from([2, 4, 8]), sp=st.booleans())
def test_tp_costs_ranks_together_more_than_one_rank_alone(tp: int, sp: bool) -> None:
    machine = Machine(node_bytes_per_s=1e12, launch_s=1e-5)
    alone = passes("", machine)[FORWARD]
    shared = passes(f"tp: {tp}, sp: {str(sp).lower()}", machine)[FORWARD]
    assert tp * shared.per_token_s > alone.per_token_s


def test_stages_between_the_first_and_the_last_are_alike() -> None:
    machine = Machine(node_bytes_per_s=1e11)
    first, *between, last = stages("pp: 4", machine, "modules.language.model.num_layers=8")
    assert between[0] == between[1]
    assert first != between[0] != last
