"""The paper's baseline takes what its modules take, one after the other on the same ranks."""

from dataclasses import replace

import pytest

from disagg_train.bench.homogeneous import Layout, Stages, best_homogeneous
from disagg_train.bench.model_sizes import gpt, vit
from disagg_train.bench.paper_cases import Case
from disagg_train.bench.spreads import ENCODER
from disagg_train.config.job import LANGUAGE
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.gpus import gpu
from disagg_train.planner.memory import module_state_bytes
from disagg_train.planner.sample_costs import SampleTable
from disagg_train.schedule.ops import OpKind

_H100 = gpu("H100").machine()
_CASE = Case(
    encoder=vit(24, 1024, 16),
    language=gpt(16, 2048, 16, 16, 8192, 32000),
    images=2,
    image_tokens=576,
    sequence_tokens=2048,
    samples=64,
    gpus=16,
    gpus_disjoint=16,
    expected="",
)
_LARGE_ENCODER = replace(_CASE, encoder=vit(48, 3072, 24))
_LARGE_LANGUAGE = replace(_CASE, language=gpt(32, 4096, 32, 32, 11008, 32000))


def test_one_stage_takes_what_the_modules_take() -> None:
    job = _CASE.job("one")
    costs = costs_by_size(job, _H100)
    table = SampleTable.of(_CASE.batch()[:4], [ENCODER])
    expected_s = sum(
        float(stage.passes[kind].of_lanes(table.tokens[name].sum(), table.squares[name].sum()))
        for name, module in costs.modules.items()
        for stage in module.stages
        for kind in (OpKind.FORWARD, OpKind.BACKWARD)
    )
    (stage,) = Stages(_CASE, job, _H100, Layout(1, 1, 1, 1, 4)).stages
    assert stage.microbatch_s == pytest.approx(expected_s)
    states = [sum(module_state_bytes(job, name)) for name in (ENCODER, LANGUAGE)]
    assert stage.state_bytes == pytest.approx(sum(states))


@pytest.mark.parametrize("pp", [1, 2, 4, 8])
def test_stages_share_all_layers(pp: int) -> None:
    made = Stages(_CASE, _CASE.job("all"), _H100, Layout(1, 1, pp, 2, 1))
    assert sum(made.layers) == 16
    assert len(made.stages) == len(made.layers) == pp


def test_a_larger_encoder_leaves_the_first_stage_fewer_layers() -> None:
    large = replace(_LARGE_LANGUAGE, encoder=vit(48, 3072, 24))
    few, more = (
        Stages(case, case.job("first"), _H100, Layout(1, 1, 4, 4, 1)).layers[0]
        for case in (large, _LARGE_LANGUAGE)
    )
    assert few < more


def test_the_best_layout_fits_and_is_no_slower_than_plain_replicas() -> None:
    job = _CASE.job("best")
    best = best_homogeneous(_CASE, job, _H100)
    replicas = Stages(_CASE, job, _H100, Layout(1, 1, 1, 16, 4)).simulated()
    assert replicas.num_bytes <= _H100.memory_bytes
    assert best.num_bytes <= _H100.memory_bytes
    assert best.step_s <= replicas.step_s


def test_a_long_context_asks_for_context_parallelism() -> None:
    best = best_homogeneous(replace(_CASE, least_cp=4), _CASE.job("long"), _H100)
    assert best.layout.cp >= 4


def test_sequence_parallelism_makes_a_cut_encoder_quicker_and_smaller() -> None:
    job, layout = _LARGE_ENCODER.job("sp"), Layout(4, 1, 1, 4, 4)
    without, shared = (
        Stages(_LARGE_ENCODER, job, _H100, replace(layout, encoder_sp=sp)).stages[0]
        for sp in (False, True)
    )
    assert shared.microbatch_s < without.microbatch_s
    assert shared.kept_bytes < without.kept_bytes
