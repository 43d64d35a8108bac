"""The paper's directions, as far as the simulator has them; docs/planning.md has the rest."""

import pytest

from disagg_train.bench.paper import PaperResult, RowResult, run_paper

pytestmark = pytest.mark.soak

_CLEARLY = 0.02


@pytest.fixture(scope="module")
def result() -> PaperResult:
    return run_paper()


@pytest.fixture(scope="module")
def rows(result: PaperResult) -> tuple[RowResult, ...]:
    return result.rows


def test_the_table_is_kept(result: PaperResult, keep) -> None:
    keep("paper", result.as_dict())
    gains, layouts = result.tables()
    assert gains.row_count == len(result.rows) + 1
    assert layouts.row_count == 3 * len(result.rows)


def test_a_small_encoder_gains_about_nothing(rows: tuple[RowResult, ...]) -> None:
    small, large, *_ = rows
    assert max(small.gain.values()) < 0.03
    assert small.gain["colocated"] < large.gain["colocated"]


def test_a_large_encoder_beside_a_small_llm_gains_over_the_papers_baseline(
    rows: tuple[RowResult, ...],
) -> None:
    _, large, *_ = rows
    assert large.gain["colocated"] > _CLEARLY
    assert large.gain["colocated"] > large.gain["disjoint"]


def test_a_long_context_gains_most_of_all_and_when_colocated(rows: tuple[RowResult, ...]) -> None:
    _, _, long, _ = rows
    assert "cp8" in long.layouts["colocated"]
    assert long.gain["colocated"] == max(gain for row in rows for gain in row.gain.values())


def test_a_large_encoder_beside_a_large_llm_gains_from_disjoint_groups(
    rows: tuple[RowResult, ...],
) -> None:
    *_, huge = rows
    assert huge.gain["disjoint"] > max(0.0, huge.gain["colocated"])
    assert huge.gain_in_all["disjoint"] > _CLEARLY
