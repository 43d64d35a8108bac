"""What a rank stores is what it, or a rank of another layout, goes on from."""

from typing import Any

import pytest

from tests.unit.engine.state_ranks import NUM_RANKS, watch_state
from tests.unit.forked import run_ranks

Runs = list[dict[Any, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return run_ranks(watch_state, NUM_RANKS, tmp_path_factory.mktemp("state"))


def test_the_same_ranks_go_on_to_the_last_bit_in_all_that_they_keep(runs: Runs) -> None:
    for run in runs:
        before, after = run["same ranks", 0], run["same ranks", 1]
        assert {k: v for k, v in before.items() if k not in ("stored", "weights")} == {
            k: v for k, v in after.items() if k != "weights"
        }
        assert _bytes(before["weights"]) == _bytes(after["weights"])
        assert before["scale"] == (512.0, 0)


@pytest.mark.parametrize("name", ["other layout", "fewer ranks"])
def test_weights_are_the_same_on_another_layout(runs: Runs, name: str) -> None:
    before: dict[str, bytes] = {}
    after: dict[str, bytes] = {}
    for run in runs:
        before |= _bytes(run[name, 0]["weights"])
        after |= _bytes(run[name, 1]["weights"]) if (name, 1) in run else {}
    assert before == after


def test_other_ranks_draw_new_random_numbers_each_its_own(runs: Runs) -> None:
    drawn = [run["fewer ranks", n]["random"] for run in runs for n in (0, 1) if n in _of(run)]
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn) == 3


def _of(run: dict[Any, Any]) -> set[int]:
    return {number for name, number in run if name == "fewer ranks"}


def test_files_are_hashed_by_the_rank_that_writes_them(runs: Runs) -> None:
    files = [set(run["other layout", 0]["stored"].files) for run in runs]
    assert files == [
        {"language/__0_0.distcp", "language/.metadata"},
        {"language/__1_0.distcp"},
    ]


def test_a_state_from_before_any_step_begins_again(runs: Runs) -> None:
    assert all(run["before any step", 0] for run in runs)


def _bytes(weights: dict[str, Any]) -> dict[str, bytes]:
    return {name: weight.tobytes() for name, weight in weights.items()}
