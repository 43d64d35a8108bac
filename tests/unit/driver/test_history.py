"""What is replayed is what was planned, and what comes after it as if nothing had been."""

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver import loop
from disagg_train.driver.commitment import BadSamples, Committer
from disagg_train.driver.history import PlanLog
from disagg_train.driver.plans import TrainingPlans, training_batches
from disagg_train.errors import RankError
from disagg_train.metrics.records import BadSample
from disagg_train.planner.step_plan import SampleSize, StepPlan
from tests.unit.config.jobs import JOB
from tests.unit.driver.fake_group import FakeGroup, done

_STEPS = 12
_KEYS = range(40)


def _job(*overrides: str) -> JobConfig:
    return load_job(JOB, [f"train.steps={_STEPS}", *overrides])


def _plans(job: JobConfig, first_step: int = 0, without: set[int] | None = None) -> TrainingPlans:
    keys = [key for key in _KEYS if key not in (without or ())]
    sizes = [SampleSize(key, 3 + key % 5, 1) for key in keys]
    return TrainingPlans(job, training_batches(job, sizes), first_step=first_step)


class _Group(FakeGroup):
    """Finds some samples bad, whenever it is asked, and dies at some steps, once at each."""

    def __init__(self, bad: set[int], dies_at: set[int]) -> None:
        super().__init__()
        self.trained: dict[int, StepPlan] = {}
        self._bad, self._dies_at = bad, dies_at

    def probe(self, plan):
        return done([[BadSample(s.key, "bad") for s in plan.samples if s.key in self._bad]])

    def train(self, plan, upcoming):
        future = super().train(plan, upcoming)
        if plan.step in self._dies_at:
            self._dies_at.remove(plan.step)
            self._fails_at = plan.step
            future = super().train(plan, upcoming)
            self._fails_at = -1
        else:
            assert self.trained.setdefault(plan.step, plan) == plan
        return future


@given(
    st.sets(st.sampled_from(_KEYS), max_size=12),
    st.sets(st.integers(0, _STEPS - 1), max_size=3),
    st.integers(0, 4),
    st.sampled_from((1, 2)),
)
def test_a_run_with_failures_trains_on_what_one_without_them_does(
    bad: set[int], dies_at: set[int], back: int, depth: int
) -> None:
    job, group = _job(), _Group(bad, dies_at)
    log, found = PlanLog(_plans(job)), BadSamples(len(bad))
    steps_done = 0
    while steps_done < _STEPS:
        log.rewind(max(0, steps_done - back))
        committer = Committer([group], found, 5.0, runs_ahead=depth == 2)
        try:
            for record, _ in loop.train([group], log, 5.0, committer=committer):
                steps_done = record.step + 1
        except RankError:
            continue
    assert [group.trained[s] for s in range(_STEPS)] == list(_plans(job, without=bad))


@given(
    st.sets(st.sampled_from(_KEYS), max_size=12),
    st.integers(0, _STEPS),
    st.sampled_from((1, 2)),
)
def test_a_run_that_is_resumed_goes_on_as_it_would_have(
    bad: set[int], resumed_at: int, depth: int
) -> None:
    job, group = _job(), _Group(bad, set())
    log, states = PlanLog(_plans(job)), {0: _plans(job).sampler_state()}
    committer = Committer([group], BadSamples(len(bad)), 5.0, runs_ahead=depth == 2)
    for record, _ in loop.train([group], log, 5.0, committer=committer):
        states[record.step + 1] = log.sampler_state(record.step + 1)
    resumed, again = _plans(job, resumed_at), _Group(bad, set())
    resumed.go_back(resumed_at, json.loads(json.dumps(states[resumed_at])), ())
    committer = Committer([again], BadSamples(len(bad)), 5.0, runs_ahead=depth == 2)
    list(loop.train([again], PlanLog(resumed), 5.0, committer=committer))
    assert list(again.trained.values()) == [group.trained[s] for s in range(resumed_at, _STEPS)]


def test_replayed_plans_are_the_same_objects_and_new_ones_follow() -> None:
    log = PlanLog(_plans(_job()))
    first = list(islice(log, 6))
    log.rewind(2)
    again = list(log)
    assert all(a is b for a, b in zip(again, first[2:], strict=False))
    assert [plan.step for plan in again] == list(range(2, _STEPS))
    assert [*first[:2], *again] == list(_plans(_job()))


def test_the_state_after_the_last_step_is_known() -> None:
    plans = _plans(_job())
    log = PlanLog(plans)
    list(log)
    assert log.sampler_state(_STEPS) == plans.sampler_state()


def test_plans_that_are_forgotten_take_no_room() -> None:
    log = PlanLog(_plans(_job()))
    list(islice(log, 6))
    log.forget(4)
    with pytest.raises(KeyError):
        log.plan(3)
    assert log.plan(4).step == 4
    with pytest.raises(AssertionError, match="forgotten"):
        log.rewind(3)


def test_samples_that_have_become_bad_are_mended_on_the_way_back_too() -> None:
    log = PlanLog(_plans(_job()))
    key = list(islice(log, 6))[2].samples[0].key
    log.rewind(2)
    next(log)
    mended = [log.without({key}), *log]
    assert [plan.step for plan in mended] == list(range(2, _STEPS))
    assert all(sample.key != key for plan in mended for sample in plan.samples)


def test_on_other_ranks_the_samples_of_all_steps_stay_the_same() -> None:
    fewer = _job("groups.encoders.ranks=1", "modules.vision.parallel.dp=1")
    log = PlanLog(_plans(_job()))
    before = list(islice(log, 4))
    log.rewind(1)
    log.lay_out(fewer)
    after = list(log)
    assert after == list(_plans(fewer))[1:]
    assert [plan.samples for plan in after[:3]] == [plan.samples for plan in before[1:]]
    assert after[0].assignment["vision"] != before[1].assignment["vision"]


def test_plans_are_counted_that_were_drawn_ahead() -> None:
    log = PlanLog(_plans(_job()))
    for _ in range(5):
        next(log)
    log.rewind(2)
    assert log.num_drawn(2) == 3
    assert log.num_drawn(5) == 0
