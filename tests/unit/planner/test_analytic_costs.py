"""Costs by the sizes of the model: against numbers that others published, and in proportion."""

from typing import Any

import pytest

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.planner.analytic_costs import analytic_costs
from disagg_train.planner.in_order import in_order
from disagg_train.planner.machine import Machine
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.schedule.costs import CostModel
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import OpKind
from tests.unit.config.jobs import JOB

MACHINE = Machine(flops_per_s=1e9, link_bytes_per_s=1e6, latency_s=0.5, memory_bytes_per_s=1e9)
WIDTH, LAYERS, TOKENS, VOCABULARY = 64, 2, 12, 384
PASSES = (OpKind.FORWARD, OpKind.BACKWARD_INPUT, OpKind.BACKWARD_WEIGHT, OpKind.BACKWARD)


def sample(key: int) -> SampleSize:
    return SampleSize(key, TOKENS, 4, {"vision": (Slot(1, 6),)}, {"vision": (6,)})


def plan_of(job: JobConfig) -> StepPlan:
    batch, microbatches = job.train.global_batch, job.train.microbatches
    assignment = {n: in_order(batch, microbatches, m.parallel.dp) for n, m in job.modules.items()}
    return StepPlan(0, tuple(map(sample, range(batch))), assignment)


def costs_of(*overrides: str, **machine: Any) -> CostModel:
    """Return the costs of the small job: 8 samples of 12 tokens in 2 microbatches."""
    job = load_job(JOB, overrides)
    return analytic_costs(
        job, job_graph(job), plan_of(job), Machine(**machine) if machine else MACHINE
    )


def one_rank(*overrides: str) -> CostModel:
    """Return the costs with the LLM on one rank; it has 4 samples per microbatch."""
    ranks = ("groups.language.ranks=1", "modules.language.parallel={}")
    return costs_of(*ranks, *overrides)


def test_a_forward_has_two_flops_per_weight_and_token_and_its_attention() -> None:
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * 4 * WIDTH
    matrices = 2 * 4 * TOKENS * (LAYERS * layer + VOCABULARY * WIDTH)
    attention = LAYERS * 2 * WIDTH * 4 * TOKENS**2
    forward_s = one_rank().seconds[OpKind.FORWARD, "language"]
    assert forward_s == pytest.approx([(matrices + attention) / 1e9] * 2)


def test_heads_are_as_wide_as_the_model_says() -> None:
    """8 heads of 16 in 2 groups: queries and outputs are 128 wide, keys and values 32."""
    sizes = {"head_size": 16, "num_query_groups": 2}
    costs = one_rank(*(f"modules.language.model.{name}={size}" for name, size in sizes.items()))
    layer = 2 * WIDTH * (128 + 32) + 3 * WIDTH * 4 * WIDTH
    matrices = 2 * 4 * TOKENS * (LAYERS * layer + VOCABULARY * WIDTH)
    attention = LAYERS * 2 * 128 * 4 * TOKENS**2
    forward_s = costs.seconds[OpKind.FORWARD, "language"]
    assert forward_s == pytest.approx([(matrices + attention) / 1e9] * 2)
    narrower, fp32 = one_rank().activation_bytes["language"][0], 4
    grown = 4 * TOKENS * LAYERS * 2 * ((128 + 32) - (64 + 64)) * fp32
    assert costs.activation_bytes["language"][0] - narrower == grown


def test_a_backward_costs_two_forwards_and_is_the_sum_of_its_halves() -> None:
    forward, inputs, weights, backward = (one_rank().seconds[k, "language"][0] for k in PASSES)
    assert backward == pytest.approx(2 * forward)
    assert inputs + weights == pytest.approx(backward)
    assert weights < forward < inputs


def test_a_frozen_llm_has_no_gradients_of_weights() -> None:
    costs = one_rank("modules.language.freeze=true")
    assert costs.seconds[OpKind.BACKWARD_WEIGHT, "language"] == (0.0, 0.0)
    backward, inputs = OpKind.BACKWARD, OpKind.BACKWARD_INPUT
    assert costs.seconds[backward, "language"] == costs.seconds[inputs, "language"]
    assert costs.seconds[OpKind.OPTIMIZER_STEP, "language"] == (0.0,)


def test_nothing_goes_back_through_a_frozen_encoder_below_a_trained_projector() -> None:
    trained = costs_of()
    frozen = costs_of("modules.vision.freeze=true", "modules.vision.projector.freeze=false")
    assert frozen.seconds[OpKind.FORWARD, "vision"] == trained.seconds[OpKind.FORWARD, "vision"]
    key = OpKind.BACKWARD_WEIGHT, "vision"
    assert 0.0 < frozen.seconds[key][0] < trained.seconds[key][0] / 5
    assert 0.0 < frozen.activation_bytes["vision"][0] < trained.activation_bytes["vision"][0] / 5


def test_ranks_of_tp_and_cp_share_the_work() -> None:
    alone = one_rank().seconds[OpKind.FORWARD, "language"][0]
    for degree in ("tp", "cp"):
        shared = costs_of(
            "groups.language.ranks=2", f"modules.language.parallel={{{degree}: 2}}"
        ).seconds
        assert shared[OpKind.FORWARD, "language"][0] == pytest.approx(alone / 2)


def test_the_stages_of_a_pipeline_share_the_layers() -> None:
    whole = one_rank().seconds[OpKind.FORWARD, "language"][0]
    costs = costs_of("groups.language.ranks=2", "modules.language.parallel={pp: 2}")
    stages = [costs.seconds[OpKind.FORWARD, f"language.{stage}"][0] for stage in range(2)]
    assert sum(stages) == pytest.approx(whole)
    assert stages[0] < stages[1], "the last stage has the output layer"


def test_the_busiest_lane_decides() -> None:
    costs = costs_of("train.global_batch=3", "train.microbatches=1")
    two_samples = costs_of("train.global_batch=4", "train.microbatches=1")
    key = OpKind.FORWARD, "vision"
    assert costs.seconds[key] == two_samples.seconds[key]


def test_a_gelu_layer_keeps_sixteen_values_per_token() -> None:
    """Korthikanti et al. (2022): 34 bytes in bf16 are 16 values of 2 and dropout's 2 masks."""
    one_layer, two_layers = (
        costs_of(f"modules.vision.model.num_layers={n}").activation_bytes["vision"][0]
        for n in (1, 2)
    )
    tokens, width, fp32 = 2 * 6, 32, 4
    assert two_layers - one_layer == tokens * 16 * width * fp32


def test_only_sequence_parallelism_splits_all_that_a_layer_keeps() -> None:
    alone = one_rank().activation_bytes["language"][0]
    ranks = "groups.language.ranks=2"
    tp, sp = (
        costs_of(ranks, f"modules.language.parallel={{tp: 2{extra}}}").activation_bytes
        for extra in ("", ", sp: true")
    )
    assert sp["language"][0] == pytest.approx(alone / 2)
    assert alone / 2 < tp["language"][0] < alone


def test_layers_computed_again_keep_their_input_and_add_a_forward() -> None:
    kept, again = one_rank(), one_rank("modules.language.recompute=full")
    assert again.activation_bytes["language"][0] < kept.activation_bytes["language"][0] / 3
    key = OpKind.BACKWARD, "language"
    assert kept.seconds[key][0] < again.seconds[key][0] < 1.5 * kept.seconds[key][0]


def test_experts_cost_what_each_token_passes_through() -> None:
    experts = ("modules.language.model.num_experts=4", "modules.language.model.experts_per_token=1")
    dense, mixture = one_rank(), one_rank(*experts)
    forward, step = (OpKind.FORWARD, "language"), (OpKind.OPTIMIZER_STEP, "language")
    assert mixture.seconds[forward] == dense.seconds[forward]
    added = LAYERS * 3 * 3 * WIDTH * 4 * WIDTH
    assert mixture.seconds[step][0] - dense.seconds[step][0] == pytest.approx(28 * added / 1e9)


@pytest.mark.parametrize(("precision", "value_bytes"), [("fp32", 4), ("bf16", 2)])
def test_half_a_ring_sums_gradients_and_half_a_ring_gives_new_weights(
    precision: str, value_bytes: int
) -> None:
    """Each of 4 ranks updates a quarter, of which it reads and writes 28 bytes per weight."""
    assert one_rank().seconds[OpKind.GRAD_SYNC, "language"] == (0.0,)
    costs = costs_of(
        "groups.language.ranks=4",
        "modules.language.parallel={dp: 4}",
        f"train.precision={precision}",
    )
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * 4 * WIDTH
    weights = LAYERS * layer + 2 * VOCABULARY * WIDTH
    sync_s = 3 / 4 * 4 * weights / 1e6
    assert costs.seconds[OpKind.GRAD_SYNC, "language"] == pytest.approx((sync_s,))
    update_s = 28 * weights / 4 / 1e9 + 3 / 4 * value_bytes * weights / 1e6
    assert costs.seconds[OpKind.OPTIMIZER_STEP, "language"] == pytest.approx((update_s,))


def test_of_low_rank_additions_only_they_have_gradients() -> None:
    """Into and out of attention and the feed-forward layer, rank 4: 4 * (in + out) each."""
    lora = one_rank("modules.language.lora={rank: 4}", "modules.language.freeze=true")
    ends = (WIDTH + 3 * WIDTH) + 2 * WIDTH + (WIDTH + 8 * WIDTH) + (4 * WIDTH + WIDTH)
    added = LAYERS * 4 * ends
    step, weight = (OpKind.OPTIMIZER_STEP, "language"), (OpKind.BACKWARD_WEIGHT, "language")
    assert lora.seconds[step] == pytest.approx((28 * added / 1e9,))
    assert lora.seconds[weight] == pytest.approx([2 * 4 * TOKENS * added / 1e9] * 2)


def test_a_boundary_moves_the_rows_of_its_busiest_rank() -> None:
    """vision dp 2: 2 samples of 6 rows per rank; the LLM tp 2, dp 2 takes half of that."""
    cost = costs_of().transfers[OpKind.SEND_FORWARD, "vision->language"]
    assert cost.seconds(0) == pytest.approx(0.5 + 2 * 6 * WIDTH * 4 / 1e6)


def test_each_edge_has_the_speed_of_its_own_link() -> None:
    """Nodes of 2: one is the encoder's, and both stages of the LLM share the other."""
    ranks = ("groups.language.ranks=2", "modules.language.parallel={pp: 2}")
    nodes = {"link_bytes_per_s": 1e6, "node_bytes_per_s": 1e9, "ranks_per_node": 2}
    transfers = costs_of(*ranks, **nodes).transfers
    assert transfers[OpKind.SEND_FORWARD, "vision->language"].bytes_per_s == 1e6
    assert transfers[OpKind.SEND_BACKWARD, "language.0->language.1"].bytes_per_s == 1e9


def test_sums_of_gradients_inside_a_node_are_quicker() -> None:
    ranks = ("groups.language.ranks=4", "modules.language.parallel={dp: 4}")
    node = {"link_bytes_per_s": 1e6, "node_bytes_per_s": 1e9}
    inside, across = (
        costs_of(*ranks, **node, ranks_per_node=size).seconds[OpKind.GRAD_SYNC, "language"][0]
        for size in (4, 1)
    )
    assert across == pytest.approx(1000 * inside)


def test_a_stage_link_moves_a_lanes_rows() -> None:
    costs = costs_of("groups.language.ranks=2", "modules.language.parallel={pp: 2}")
    cost = costs.transfers[OpKind.SEND_BACKWARD, "language.0->language.1"]
    assert cost.num_bytes == (4 * TOKENS * WIDTH * 4,) * 2


def test_a_faster_machine_is_faster_in_proportion() -> None:
    slow, fast = costs_of(flops_per_s=1e9), costs_of(flops_per_s=4e9)
    for kind in PASSES:
        assert slow.seconds[kind, "language"] == pytest.approx(
            [4 * each for each in fast.seconds[kind, "language"]]
        )


def test_every_stage_and_edge_of_a_job_has_costs() -> None:
    job = load_job(JOB, ["modules.language.parallel={tp: 2, pp: 2}"])
    graph: StageGraph = job_graph(job)
    costs = analytic_costs(job, graph, plan_of(job), MACHINE)
    assert {stage for _, stage in costs.seconds} == set(graph.nodes) == set(costs.activation_bytes)
    assert {edge for _, edge in costs.transfers} == {edge.name for edge in graph.edges}
