"""A board gives each reader what is new to it, and no more than it keeps."""

from collections.abc import Sequence

from disagg_train.metrics.board import Board, News, RunFacts, history
from disagg_train.metrics.records import StepRecord

_FACTS = RunFacts("digits", 9, "/runs/digits")


def _records(*steps: int) -> list[StepRecord]:
    return [StepRecord(step, 1.0, 1.0, 0.1, 3, 5, 0.5, False, 0, 0, {}) for step in steps]


def _steps(records: Sequence[StepRecord]) -> list[int]:
    return [record.step for record in records]


def _read(board: Board, seen: News, reader: str = "me") -> News:
    return board.news(reader, seen.num_records, seen.num_notes)


def test_a_reader_gets_each_record_and_note_once() -> None:
    board = Board(_FACTS)
    board.pin(_records(0, 1), ["began"])
    first = _read(board, News())
    assert (_steps(first.records), list(first.notes)) == ([0, 1], ["began"])
    board.pin(_records(2), [])
    second = _read(board, first)
    assert (_steps(second.records), list(second.notes)) == ([2], [])
    assert _read(board, second).records == ()


def test_readers_do_not_take_from_each_other() -> None:
    board = Board(_FACTS)
    board.pin(_records(0), [])
    _read(board, News(), "one")
    assert _steps(_read(board, News(), "two").records) == [0]


def test_a_late_reader_gets_the_newest_that_are_kept() -> None:
    board = Board(_FACTS, kept=3)
    board.pin(_records(*range(10)), [])
    news = _read(board, News())
    assert (_steps(news.records), news.num_records) == ([7, 8, 9], 10)
    board.pin(_records(10), [])
    assert _steps(_read(board, news).records) == [10]


def test_the_wish_to_stop_is_told_whenever_something_is_pinned() -> None:
    board = Board(_FACTS)
    assert not board.pin(_records(0), [])
    board.ask_to_stop()
    assert board.pin(_records(1), [])
    assert board.pin((), [])


def test_the_end_waits_for_those_who_read_a_moment_ago() -> None:
    board = Board(_FACTS)
    assert board.finish("finished")
    board = Board(_FACTS)
    seen = _read(board, News())
    assert not board.finish("finished")
    assert _read(board, seen).outcome == "finished"
    assert board.finish("finished")


def test_history_has_each_step_as_it_was_done_last() -> None:
    again = StepRecord(1, 7.0, 1.0, 0.1, 3, 5, 0.5, False, 0, 0, {})
    found = history([*_records(0, 1, 2, 3), again, *_records(2)])
    assert [(record.step, record.loss) for record in found] == [(0, 1.0), (1, 7.0), (2, 1.0)]
