"""A profile on real ranks: every trial is written, none is run twice, costs follow from them."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from disagg_train.planner.profiles import Profile
from disagg_train.planner.trials import parse_degrees, trial_jobs
from disagg_train.profiler import Profiler
from disagg_train.schedule.ops import OpKind
from tests.parity.jobs import small_job

if TYPE_CHECKING:
    from actors.pool import ActorPool

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_JOB = small_job({"dp": 2}, {"tp": 2, "sp": True})
_TRIALS = trial_jobs(_JOB, parse_degrees(["language:tp=2,1"]))
_WELL_ENOUGH = 0.5
"""Of a step: the test's ranks share their cores with whatever else runs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def measured(pool: "ActorPool", folder: Path) -> Profile:
    """Measure all trials; the first profile is interrupted after one of them."""
    with Profiler(_TRIALS, folder, pool=pool) as profiler:
        assert len(profiler.missing) == 2
        run = profiler.run()
        next(run)
        run.close()
    with Profiler(_TRIALS, folder, pool=pool) as profiler:
        assert len(profiler.missing) == 1
        assert len(list(profiler.run())) == 1
    return Profile.read(folder)


def test_a_profile_that_is_done_runs_nothing(
    measured: Profile, pool: "ActorPool", folder: Path
) -> None:
    assert measured.modules
    with Profiler(_TRIALS, folder, pool=pool) as profiler:
        assert not profiler.missing
        assert list(profiler.run()) == []
        assert len(profiler.modules()) == 3


def test_trials_follow_each_other_on_the_same_actors(pool: "ActorPool", tmp_path: Path) -> None:
    with Profiler(_TRIALS, tmp_path, pool=pool) as profiler:
        degrees = [each.job.modules["language"].parallel.tp for each in profiler.run()]
    assert degrees == [2, 1]


def test_every_pass_of_every_module_has_coefficients(measured: Profile) -> None:
    for module in measured.modules:
        for stage in module.stages:
            assert set(stage.passes) == {OpKind.FORWARD, OpKind.BACKWARD}
            for fit in stage.passes.values():
                assert fit.per_token_s + fit.per_square_s + fit.per_microbatch_s > 0.0
                assert fit.held_out is not None
            assert {OpKind.GRAD_SYNC, OpKind.OPTIMIZER_STEP} <= set(stage.once_s)
        assert module.activation_ratio is not None
        assert 0.3 < module.activation_ratio < 3.0


def test_the_boundary_was_measured(measured: Profile) -> None:
    assert {link.edges for link in measured.links} == {("vision->language",)}
    assert not any(link.crosses_nodes for link in measured.links)


def test_steps_are_predicted_well_enough(measured: Profile) -> None:
    for module in measured.modules:
        assert module.step_error is not None
        assert module.step_error < _WELL_ENOUGH


def test_degrees_that_were_measured_need_no_scaling(measured: Profile) -> None:
    for trial_tp in (1, 2):
        job = small_job({"dp": 2}, {"tp": trial_tp, "sp": trial_tp > 1, "dp": 2 // trial_tp})
        assert measured.notes(job) == []
        assert set(measured.costs(job).modules) == {"vision", "language"}
