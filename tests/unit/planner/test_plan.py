"""Plans: as good as the best of all layouts, within memory, and sure as far as they say."""

from dataclasses import replace
from functools import cache
from math import inf

import numpy as np
import pytest

from disagg_train.bench.every_layout import every_candidate
from disagg_train.bench.statistics import rank_correlation
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.driver.planning import staged
from disagg_train.errors import PlanError
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.candidates import Pool
from disagg_train.planner.finalists import Field, Finalist
from disagg_train.planner.module_options import ModuleOptions
from disagg_train.planner.plan import Plan, make_plan
from disagg_train.planner.sample_costs import ModuleCost
from disagg_train.planner.search import Search
from disagg_train.planner.step_costs import JobCosts
from disagg_train.planner.workload import Batches, Workload, cost_ratio
from tests.unit.planner.planned import MACHINE, samples, small_job

_RANKS = 4


def _costs(job: JobConfig) -> JobCosts:
    return costs_by_size(job, MACHINE)


def _plan(job: JobConfig, batches: Batches, ranks: int = _RANKS, memory: float = inf) -> Plan:
    pools = [Pool(ranks, memory)]
    return make_plan(job, pools, _costs, staged, batches, [s for b in batches for s in b])


@cache
def _all_finalists(ranks: int) -> tuple[JobConfig, list[Finalist]]:
    job = small_job(balance="none")
    field = Field(job, [Pool(ranks)], _costs, staged)
    every = (field.finalist(candidate) for candidate in every_candidate(job, ranks))
    return job, [each for each in every if each is not None]


@pytest.mark.parametrize("patches", [16, 256, 1024])
@pytest.mark.parametrize("ranks", [2, pytest.param(_RANKS, marks=pytest.mark.slow)])
def test_a_plan_is_about_as_quick_as_the_best_of_all_layouts(ranks: int, patches: int) -> None:
    job, every = _all_finalists(ranks)
    batches = (samples(job, 16, patches),)
    least_s = min(each.estimate(batches).step_s for each in every)
    assert _plan(job, batches, ranks).best.estimate(batches).step_s <= 1.02 * least_s


def test_candidates_are_ranked_about_as_they_are_simulated() -> None:
    job = small_job(balance="none")
    batches = (samples(job, 16),)
    options = ModuleOptions(job, _costs, Workload.of(job, batches))
    ranked = [r for found in Search(job, [Pool(8)], options).ranked().values() for r in found]
    field = Field(job, [Pool(8)], _costs, staged)
    rough, simulated = [], []
    for each in ranked[:: max(1, len(ranked) // 60)]:
        made = field.finalist(each.candidate)
        assert made is not None
        rough.append(each.step_s)
        simulated.append(made.estimate(batches).step_s)
    assert rank_correlation(rough, simulated) > 0.9


def test_what_does_not_fit_is_not_chosen() -> None:
    job = small_job(global_batch=16)
    batches = (samples(job, 16, 512),)
    ample = _plan(job, batches).best.estimate(batches)
    memory = 0.7 * max(ample.num_bytes.values())
    tight = _plan(job, batches, memory=memory).best.estimate(batches)
    assert max(tight.num_bytes.values()) <= memory
    assert tight.step_s >= ample.step_s


def test_nothing_fits_and_the_error_says_into_what() -> None:
    job = small_job()
    with pytest.raises(PlanError, match=r"no layout fits 4 GPUs with 0 GiB to use; take more"):
        _plan(job, (samples(job, 16),), memory=1e5)


def test_two_encoders_may_share_a_group_or_not() -> None:
    job = small_job(encoders=2)
    plan = _plan(job, (samples(job, 16, 256),), ranks=8)
    assert set(plan.best_of) == {"colocated", "disjoint", "mixed"}
    assert {name for team in plan.best.candidate.teams for name in team.modules} == set(job.modules)


@pytest.mark.parametrize("patches", [16, 1024])
def test_the_homogeneous_layout_is_never_clearly_quicker_than_the_choice(patches: int) -> None:
    job = small_job()
    batches = (samples(job, 16, patches),)
    plan = _plan(job, batches, ranks=8)
    assert plan.homogeneous is not None
    chosen_s = plan.best.estimate(batches).step_s
    assert plan.homogeneous.estimate(batches).step_s >= 0.99 * chosen_s


def test_gpus_of_two_kinds_are_not_mixed_in_a_group() -> None:
    job = small_job()
    batches = (samples(job, 16, 256),)
    pools = [Pool(4, kind="H100"), Pool(2, kind="L40S")]

    def costs(laid_out: JobConfig) -> JobCosts:
        slow = replace(MACHINE, flops_per_s=MACHINE.flops_per_s / 4)
        found = {}
        for name, module in laid_out.modules.items():
            kind = laid_out.groups[module.group].accelerator
            found[name] = costs_by_size(laid_out, slow if kind == "L40S" else MACHINE).modules[name]
        return replace(_costs(laid_out), modules=found)

    plan = make_plan(job, pools, costs, staged, batches, batches[0])
    teams = plan.best_of["disjoint"].candidate.teams
    assert {team.modules: (team.ranks, team.gpu_kind) for team in teams} == {
        ("vision",): (2, "L40S"),
        (LANGUAGE,): (4, "H100"),
    }


def test_inside_the_margin_the_choice_stays() -> None:
    job = small_job()
    batches = (samples(job, 16, 256),)
    plan = _plan(job, batches, ranks=8)
    margin, best = plan.margin, plan.best
    for end, rival in ((margin.low, margin.below), (margin.high, margin.above)):
        if rival is None:
            continue
        nearer = end**0.5
        for stretch, wins in ((end, True), (nearer, False)):
            mine = best.estimate(batches, stretch).step_s
            assert (rival.estimate(batches, stretch).step_s < 0.99 * mine) == wins


@cache
def _drawn() -> tuple[JobConfig, Batches]:
    job = small_job()
    return job, (samples(job, 16, 256),)


def test_the_ratio_of_batches_scatters_as_one_over_the_root_of_their_size() -> None:
    job, (batch,) = _drawn()
    modules: dict[str, ModuleCost] = dict(_costs(job).modules)
    many = samples(job, 35 * 60)
    whole, rng = cost_ratio(job, modules, many), np.random.default_rng(0)
    for size in (16, 64):
        drawn = [
            cost_ratio(job, modules, [many[i] for i in rng.integers(len(many), size=size)]).ratio
            for _ in range(400)
        ]
        found = np.std(drawn) / whole.ratio
        assert found == pytest.approx(whole.variation / size**0.5, rel=0.15)
    del batch
