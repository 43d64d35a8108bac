"""What is fitted to the reports of a trial is what made them."""

from dataclasses import replace
from functools import cache

import pytest

from disagg_train.bench.spreads import SPREADS
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver.profiling import Measured, Place, Trial, fitted, measure
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.machine import Machine
from disagg_train.planner.profiles import Profile
from disagg_train.planner.sample_costs import ModuleCost, PassCost
from disagg_train.planner.step_costs import JobCosts
from disagg_train.planner.trials import TrialPlans, trial_jobs
from disagg_train.schedule.ops import OpKind
from tests.unit.config.jobs import JOB
from tests.unit.driver.simulated_ranks import SimulatedRanks, whole_passes

SAMPLES = SPREADS["chart-to-table"].samples(512, seed=1)
MACHINE = Machine(flops_per_s=1e11, link_bytes_per_s=1e8, latency_s=1e-4, memory_bytes_per_s=1e9)
LAUNCH_S = 2e-4
PLACE = Place({"encoders": "a CPU", "language": "a CPU"}, ["node"] * 6)
SIZES = ("train.global_batch=64", "train.microbatches=4", "modules.vision.projector.merge=4")
LANES = ("modules.vision.parallel={tp: 2}", "modules.language.parallel={tp: 4}")
"""One lane each: of several, simulated ones all take as long as the busiest."""
LAYOUTS = {
    "as it is": (),
    "pipeline": ("modules.language.parallel={tp: 2, pp: 2}",),
    "interleaved": (
        "modules.language.model.num_layers=4",
        "modules.language.parallel={tp: 2, pp: 2, vpp: 2}",
    ),
    "zero bubble": (
        "modules.language.parallel={tp: 2, pp: 2}",
        "train.schedule=zero_bubble",
    ),
    "padded": ("modules.language.packed=false",),
    "frozen": ("modules.vision.freeze=true",),
    "frozen below a projector": (
        "modules.vision.freeze=true",
        "modules.vision.projector.freeze=false",
    ),
}
EXPERTS = (
    "modules.language.model.num_experts=2",
    "modules.language.model.experts_per_token=1",
    "modules.language.parallel={dp: 4, ep: 2}",
)


def job_of(*overrides: str) -> JobConfig:
    return trial_jobs(load_job(JOB, [*SIZES, *LANES, *overrides]), {})[0]


def truth_of(job: JobConfig) -> JobCosts:
    """Return costs as the sizes say, with something for every launch."""
    computed = costs_by_size(job, MACHINE)

    def launched(module: ModuleCost) -> ModuleCost:
        stages = []
        for stage in module.stages:
            passes = {k: c + PassCost(0.0, 0.0, LAUNCH_S) for k, c in stage.passes.items()}
            stages.append(replace(stage, passes=passes))
        return ModuleCost(tuple(stages))

    modules = {name: launched(module) for name, module in computed.modules.items()}
    return replace(computed, modules=modules)


@cache
def laid_out(layout: str) -> tuple[JobConfig, JobCosts, Measured]:
    job = job_of(*LAYOUTS[layout])
    truth = truth_of(job)
    return job, truth, measured(job, truth)


def measured(job: JobConfig, truth: JobCosts) -> Measured:
    plans = TrialPlans.of(job, SAMPLES)
    return fitted(Trial(job, plans, SimulatedRanks(job, truth).steps(plans.steps())), PLACE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_forwards_cost_what_made_the_reports(layout: str) -> None:
    job, truth, found = laid_out(layout)
    profile = Profile(found.modules, found.links)
    for name in job.modules:
        wanted = whole_passes(truth, name, OpKind.FORWARD)
        assert whole_passes(profile.costs(job), name, OpKind.FORWARD) == pytest.approx(
            wanted, rel=1e-3, abs=1e-12
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_steps_of_a_trial_are_predicted(layout: str) -> None:
    _, _, found = laid_out(layout)
    for module in found.modules:
        assert module.step_error is not None
        assert module.step_error < 0.01


def test_lanes_that_run_as_one_count_the_busiest() -> None:
    job = job_of(*EXPERTS)
    truth = truth_of(job)
    language = measured(job, truth).modules[-1]
    wanted = truth.modules["language"].stages[0].passes[OpKind.FORWARD].per_token_s
    (stage,) = language.stages
    assert stage.passes[OpKind.FORWARD].per_token_s == pytest.approx(wanted, rel=0.05)


def test_the_warm_up_does_not_count() -> None:
    """Its ops take three times as long."""
    _, _, found = laid_out("as it is")
    for module in found.modules:
        for stage in module.stages:
            assert all(fit.error.worst < 1e-4 for fit in stage.passes.values())


def test_transfers_show_the_links() -> None:
    _, _, found = laid_out("as it is")
    (link,) = found.links
    assert link.edges == ("vision->language",)
    assert not link.crosses_nodes
    assert link.fit.bytes_per_s == pytest.approx(MACHINE.link_bytes_per_s, rel=0.01)
    assert link.fit.latency_s == pytest.approx(MACHINE.latency_s, rel=0.01)


def test_colocated_modules_have_no_link_between_them() -> None:
    job = job_of(
        "groups={language: {ranks: 4}}",
        "modules.vision.group=language",
        "modules.vision.parallel={dp: 4}",
    )
    assert not measured(job, truth_of(job)).links


def test_links_between_nodes_are_told_apart() -> None:
    job = job_of()
    plans = TrialPlans.of(job, SAMPLES)
    steps = SimulatedRanks(job, truth_of(job)).steps(plans.steps())
    place = Place(PLACE.hardware, ["one", "one", "two", "two", "two", "two"])
    (link,) = fitted(Trial(job, plans, steps), place).links
    assert link.crosses_nodes
    assert link.ranks_per_node == 4


def test_counted_activations_scale_the_computed_ones() -> None:
    """The simulated ranks count twice what is computed."""
    job, truth, found = laid_out("as it is")
    for name, module in Profile(found.modules).costs(job).modules.items():
        assert module.bytes_per_token == pytest.approx(2 * truth.modules[name].bytes_per_token)


def test_the_end_of_a_step_is_measured() -> None:
    _, truth, found = laid_out("as it is")
    for module in found.modules:
        (stage,) = module.stages
        (wanted,) = truth.modules[module.module].stages
        assert stage.once_s == pytest.approx(dict(wanted.once_s))


def test_measuring_runs_every_step_of_the_trial_once_and_in_order() -> None:
    job = job_of()
    ranks = SimulatedRanks(job, truth_of(job))
    found = measure([ranks], job, SAMPLES, PLACE)
    plans = TrialPlans.of(job, SAMPLES)
    assert ranks.calls == [f"train {step}" for step in range(plans.num_steps)]
    assert [each.module for each in found.modules] == ["vision", "language"]
