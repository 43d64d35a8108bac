"""Bad samples leave no trace: the plans that run are those of a data set without them."""

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver import loop
from disagg_train.driver.commitment import BadSamples, Committer
from disagg_train.driver.plans import (
    EvaluationPlans,
    RecordedPlans,
    TrainingPlans,
    training_batches,
)
from disagg_train.errors import DataError, RankError
from disagg_train.metrics.records import BadSample, RankReport
from disagg_train.planner.step_plan import SampleSize, StepPlan
from tests.unit.config.jobs import JOB
from tests.unit.driver.fake_group import FakeGroup, done, failed

_LIMIT = 50


class _Group(FakeGroup):
    """Two ranks; the first sees one part of the bad samples, the second another."""

    def __init__(self, bad: Sequence[set[int]] = (set(), set()), depth: int = 1) -> None:
        super().__init__()
        self.trained: list[StepPlan] = []
        self._bad, self._depth = bad, depth
        self._probed: list[StepPlan] = []

    def probe(self, plan: StepPlan) -> Future[Sequence[Sequence[BadSample]]]:
        self.calls.append(f"probe {plan.step}")
        keys = [{s.key for s in plan.samples} & seen for seen in self._bad]
        self._probed.append(plan)
        return done([tuple(BadSample(key, f"sample {key} is bad") for key in k) for k in keys])

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> Future[Sequence[RankReport]]:
        self.calls.append(f"train {plan.step}")
        assert plan in self._probed
        assert upcoming is None or (self._depth == 2 and upcoming in self._probed)
        self.trained.append(plan)
        return done([RankReport(0, loss_sum=1.0)])


def _job(*overrides: str) -> JobConfig:
    return load_job(JOB, ["train.steps=7", "train.evaluation.samples=3", *overrides])


def _sizes(keys: Sequence[int]) -> list[SampleSize]:
    return [SampleSize(key, 3 + key % 5, 1) for key in keys]


def _plans(job: JobConfig, keys: Sequence[int]) -> TrainingPlans:
    return TrainingPlans(job, training_batches(job, _sizes(keys)))


@given(
    st.sets(st.integers(0, 39), max_size=20),
    st.sets(st.integers(0, 39), max_size=15),
    st.sampled_from((1, 2)),
    st.sampled_from(("null", "30")),
)
def test_what_runs_is_what_would_run_without_the_bad_samples(
    first: set[int], second: set[int], depth: int, budget: str
) -> None:
    job = _job(f"train.tokens_per_microbatch={budget}")
    groups = [_Group([first, set()], depth), _Group([set(), second | first], depth)]
    committer = Committer(groups, BadSamples(_LIMIT), 5.0, runs_ahead=depth == 2)
    records = [r for r, _ in loop.train(groups, _plans(job, range(40)), 5.0, committer=committer)]
    rest = [key for key in range(40) if key not in first | second]
    expected = list(_plans(job, rest))
    assert groups[0].trained == groups[1].trained == expected
    listed = [bad.key for record in records for bad in record.bad_samples]
    seen = {s.key for plan in _plans(job, range(40)) for s in plan.samples} & (first | second)
    assert len(listed) == len(set(listed)) == records[-1].num_bad_samples
    assert seen <= set(listed) <= first | second


def test_a_plan_is_probed_while_the_step_before_it_runs() -> None:
    group = _Group()
    committer = Committer([group], BadSamples(0), 5.0)
    next(loop.train([group], _plans(_job(), range(40)), 5.0, committer=committer))
    assert group.calls == ["probe 0", "train 0", "probe 1", "train 1"]


def test_encoders_that_run_ahead_are_given_a_committed_plan() -> None:
    group = _Group(depth=2)
    committer = Committer([group], BadSamples(0), 5.0, runs_ahead=True)
    next(loop.train([group], _plans(_job(), range(40)), 5.0, committer=committer))
    assert group.calls[:3] == ["probe 0", "probe 1", "train 0"]
    assert group.calls[3:] == ["probe 2", "train 1"]


def test_without_a_committer_nothing_is_probed() -> None:
    group = _Group()
    group._probed = list(_plans(_job(), range(40)))
    group._depth = 2
    assert len(list(loop.train([group], _plans(_job(), range(40)), 5.0))) == 7
    assert {call.split()[0] for call in group.calls} == {"train"}


def test_too_many_bad_samples_end_the_run_with_the_last_reason() -> None:
    group = _Group([set(range(30)), set()])
    committer = Committer([group], BadSamples(4), 5.0)
    with pytest.raises(DataError, match=r"more than data.max_bad_samples=4; .* sample \d+ is bad"):
        list(loop.train([group], _plans(_job(), range(40)), 5.0, committer=committer))


def test_bad_samples_of_the_index_count_too() -> None:
    with pytest.raises(DataError, match="3 samples are bad"):
        BadSamples(2, [BadSample(key, "too long") for key in (1, 1, 2, 3)])


def test_a_data_set_of_bad_samples_alone_ends_the_run() -> None:
    group = _Group([set(range(12)), set()])
    committer = Committer([group], BadSamples(_LIMIT), 5.0)
    with pytest.raises(DataError, match="no sample is left to train on"):
        list(loop.train([group], _plans(_job(), range(12)), 5.0, committer=committer))


def test_evaluations_are_mended_and_stay_so() -> None:
    group = _Group([{1, 2}, {4}])
    committer = Committer([group], BadSamples(_LIMIT), 5.0)
    plans = EvaluationPlans(_job(), _sizes(range(8)))
    for _ in range(2):
        plan = loop.next_plan(plans, committer)
        assert [sample.key for sample in plan.samples] == [0, 3, 5]
    assert committer.bad.count == 3


def test_recorded_plans_are_those_that_were_committed() -> None:
    group, job = _Group([{3, 5, 8, 20}, {7, 21}]), _job()
    committer = Committer([group], BadSamples(_LIMIT), 5.0)
    recorded = RecordedPlans(_plans(job, range(40)))
    list(loop.train([group], recorded, 5.0, committer=committer))
    again = list(TrainingPlans(job, iter(recorded.batches)))
    assert again == group.trained


def test_the_step_is_blamed_where_it_took_the_loading_along() -> None:
    group = _Group()
    committer = Committer([group], BadSamples(0), 5.0)
    plans = _plans(_job(), range(40))
    steps = loop.train([group], plans, 5.0, lambda step: True, committer)
    next(steps)
    group.train = lambda *_: failed(RankError("died", "all", 1, cause="died"))  # type: ignore[method-assign]
    group.probe = lambda plan: failed(RankError("cancelled", "all", 1))  # type: ignore[method-assign]
    with pytest.raises(RankError, match="died"):
        next(steps)


def test_fewer_plans_than_steps_can_be_asked_for() -> None:
    job = _job()
    plans = TrainingPlans(job, training_batches(job, _sizes(range(9))), steps=2)
    assert list(plans) == list(islice(_plans(job, range(9)), 2))
