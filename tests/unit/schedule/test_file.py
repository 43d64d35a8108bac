"""Schedules as files: what is written is read, and what is wrong is named."""

from pathlib import Path

import pytest
from hypothesis import given

from disagg_train.errors import PlanError
from disagg_train.schedule.build import training_schedule
from disagg_train.schedule.check import check
from disagg_train.schedule.file import load_schedule, save_schedule
from tests.unit.schedule.strategies import TrainingCase, disjoint_graph, training_cases


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schedules") / "schedule.yaml"


@given(training_cases())
def test_a_saved_schedule_is_read_as_it_was(file: Path, case: TrainingCase) -> None:
    save_schedule(case.schedule, file)
    assert load_schedule(file) == case.schedule


def test_ranks_with_one_list_share_it_and_ops_read_as_words(file: Path) -> None:
    save_schedule(training_schedule(disjoint_graph(), 2, 2), file)
    lines = file.read_text().splitlines()
    assert "  0-1:" in lines and "  2-3:" in lines
    assert "  - send_forward vision->language 1" in lines


def edited(file: Path, old: str, new: str) -> Path:
    save_schedule(training_schedule(disjoint_graph(), 2, 2), file)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    return file


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "- forward vision 1",
            "- foreword vision 1",
            "ranks 0-1, op 2: 'foreword vision 1' is no op",
        ),
        ("- forward vision 1", "- forward vision one", "'forward vision one' is no op"),
        ("0-1:", "0..1:", "ranks '0..1'"),
        ("2-3:", "1-3:", "rank 1 has two op lists"),
        ("2-3:", "3-4:", "rank 2 has no op list"),
        ("num_microbatches: 2", "microbatches: 2", "no schedule ('num_microbatches')"),
        ("num_microbatches: 2", "num_microbatches: many", "no schedule"),
        ("name: 1f1b", "name: [", "no schedule"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused_by_name(
    file: Path, old: str, new: str, complaint: str
) -> None:
    with pytest.raises(PlanError) as refused:
        load_schedule(edited(file, old, new))
    assert str(file) in str(refused.value) and complaint in str(refused.value)


def test_a_schedule_of_another_job_is_refused(file: Path) -> None:
    save_schedule(training_schedule(disjoint_graph(), 2, 2), file)
    path = edited(file, "2-3:", "2-4:")
    with pytest.raises(PlanError, match="is for 5 ranks, the job has 4"):
        check(load_schedule(path), disjoint_graph())


def test_an_op_moved_by_hand_is_named_by_the_checker(file: Path) -> None:
    path = edited(file, "- forward vision 1", "- backward vision 1")
    with pytest.raises(PlanError, match="rank 0 runs 'backward vision 1' twice"):
        check(load_schedule(path), disjoint_graph())
