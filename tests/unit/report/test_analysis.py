"""Messages, shares, balance, curves and predictions of a run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from disagg_train.config.job import JobConfig
from disagg_train.config.planned import PlannedConfig
from disagg_train.metrics.records import StepRecord
from disagg_train.planner.in_order import start_assignment
from disagg_train.planner.step_plan import StepPlan
from disagg_train.report.curves import Curve, charts, thinned
from disagg_train.report.messages import Messages, arrows
from disagg_train.report.microbatch_work import busiest, works_of
from disagg_train.report.placement import group_cards
from disagg_train.report.predictions import planned
from disagg_train.report.recorded import Recorded, analyse
from disagg_train.report.run_folder import RunFolder, read_folder
from tests.report.runs import job_of, step_of, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("run")
    job = job_of(folder, 2, {"pp": 2}, steps=6, microbatches=4)
    return read_folder(write_run(folder, job))


@pytest.fixture(scope="module")
def recorded(run: RunFolder) -> Recorded:
    return analyse(run)


def test_a_plan_survives_its_file(run: RunFolder) -> None:
    for step in run.steps:
        assert step.plan == step_of(run.job, step.number)[0]
        assert step.plan == StepPlan.from_dict(json.loads(json.dumps(step.plan.as_dict())))


def test_every_message_is_an_arrow_from_its_sender_to_its_receiver(
    run: RunFolder, recorded: Recorded
) -> None:
    plan = run.steps[0].plan
    assert plan is not None
    sent = Messages(run.job).of_step(plan)
    drawn = arrows(recorded.timelines[0], sent)
    rows = recorded.timelines[0].rows
    assert len(drawn) == sum(len(each) for pairs in sent.values() for each in pairs.values())
    assert {each.sender in (0, 1) for each in drawn} == {True, False}
    for each in drawn:
        begin, end = rows[each.sender][each.sent].op, rows[each.receiver][each.received].op
        assert begin is not None and end is not None
        assert begin.kind.is_send and end.kind.is_recv
        assert (begin.boundary, begin.microbatch) == (end.boundary, end.microbatch)
        assert begin.kind.is_gradient == end.kind.is_gradient


def test_a_boundary_carries_as_many_tokens_back_as_forward(run: RunFolder) -> None:
    plan = run.steps[0].plan
    assert plan is not None
    tokens = {True: 0, False: 0}
    for (edge, back, _), pairs in Messages(run.job).of_step(plan).items():
        if edge == "vision->language":
            tokens[back] += sum(count for each in pairs.values() for count in each.values())
    assert tokens[True] == tokens[False] == sum(sample.tokens("vision") for sample in plan.samples)


def test_without_a_plan_arrows_come_from_the_rank_that_was_waited_for(recorded: Recorded) -> None:
    timeline = recorded.timelines[0]
    drawn = arrows(timeline, {})
    assert drawn
    for each in drawn:
        assert timeline.rows[each.receiver][each.received].waits_for == each.sender


def test_the_shares_of_a_module_are_a_whole_step(recorded: Recorded) -> None:
    for shares in recorded.shares.values():
        parts = shares.forward + shares.backward + shares.boundary + shares.sync
        assert parts + shares.others + shares.idle == pytest.approx(1)
    assert recorded.shares["vision"].others == 0


def test_a_plan_in_order_has_the_work_of_samples_in_order(run: RunFolder) -> None:
    plan = run.steps[0].plan
    assert plan is not None
    in_order = replace(plan, assignment=start_assignment(run.job, plan.samples))
    for works in works_of(run.job, [in_order]).values():
        assert list(works[0].planned) == pytest.approx(list(works[0].in_order))


def test_balanced_microbatches_have_more_even_work(run: RunFolder) -> None:
    plans = [step.plan for step in run.steps if step.plan]
    works = works_of(run.job, plans)["language"]
    assert busiest([w.planned for w in works]) < busiest([w.in_order for w in works])
    assert min(min(w.planned) for w in works) >= 0


def test_what_the_planner_expected_stands_beside_what_was_measured(run: RunFolder) -> None:
    assert planned(run) == []
    expected = PlannedConfig(busy_s={"vision": 1.0, "language": 2.0})
    found = planned(replace(run, job=run.job.model_copy(update={"plan": expected})))
    assert [(each.module, each.planned_s) for each in found] == [("vision", 1.0), ("language", 2.0)]
    assert all(0 < each.measured_s < 1 for each in found)


def test_thinned_curves_keep_the_lowest_and_the_highest_value() -> None:
    values = [float(abs(step - 3333)) for step in range(10_000)]
    values[7777] = 1e6
    thin = thinned(Curve("loss", range(10_000), values), 100)
    assert len(thin.steps) <= 100
    assert {0.0, 1e6} <= set(thin.values)
    assert list(thin.steps) == sorted(set(thin.steps))
    assert all(values[step] == value for step, value in zip(thin.steps, thin.values, strict=True))


def test_values_that_are_not_finite_are_none(run: RunFolder) -> None:
    def with_loss(record: StepRecord, loss: float) -> StepRecord:
        return replace(record, loss=loss)

    records = [with_loss(run.records[0], math.nan), with_loss(run.records[1], math.inf)]
    assert charts(records, [])[0].curves[0].values == [None, None]
    many = Curve("loss", range(5000), [None] * 5000)
    assert set(thinned(many, 100).values) == {None}


def test_the_placement_says_where_every_rank_stands(run: RunFolder, tmp_path: Path) -> None:
    encoders, language = group_cards(run.job)
    assert encoders.feeds == ("vision",) and not language.feeds
    (llm,) = language.modules
    assert [seat.place for seat in llm.ranks] == [2, 3, 4, 5]
    assert llm.ranks[3].text == "tp 1, cp 0, dp 0, pp 1"
    assert ("pp", 2) in llm.degrees


def test_colocated_encoders_feed_nobody_elsewhere(tmp_path: Path) -> None:
    content = job_of(tmp_path).model_dump(mode="json", exclude_unset=True)
    del content["groups"]["encoders"]
    content["modules"]["vision"]["group"] = "language"
    (group,) = group_cards(JobConfig.model_validate(content))
    assert [module.name for module in group.modules] == ["vision", "language"]
    assert not group.feeds
