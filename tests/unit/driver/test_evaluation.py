"""Held-out answers are scored as people would score them."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.data.source import IGNORE, Sample, Split
from disagg_train.driver.evaluation import exact_match, fold_evaluation, token_f1
from disagg_train.metrics.records import RankReport
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan

_TEXTS = st.text("ab .,A")


@given(_TEXTS, _TEXTS)
def test_f1_is_symmetric_and_one_for_the_same_words_only(left: str, right: str) -> None:
    assert token_f1(left, right) == token_f1(right, left)
    assert 0 <= token_f1(left, right) <= 1
    assert token_f1(left, left) == 1
    if exact_match(left, right):
        assert token_f1(left, right) == 1


@pytest.mark.parametrize(
    ("predicted", "true", "exact", "f1"),
    [
        ("A red bus.", "a red bus", True, 1.0),
        ("a bus", "a red bus", False, 0.8),
        ("bus red a", "a red bus", False, 1.0),
        ("3.5", "35", False, 0.0),
        ("", "yes", False, 0.0),
        ("no no", "no", False, 2 / 3),
    ],
)
def test_answers_are_scored_word_by_word(predicted: str, true: str, exact: bool, f1: float) -> None:
    assert exact_match(predicted, true) is exact
    assert token_f1(predicted, true) == pytest.approx(f1)


class _Conversations:
    """Samples of two answers, of which the second is generated; texts are letters."""

    def sizes(self, split: Split) -> Sequence[SampleSize]:
        del split
        slots = {"vision": (Slot(0, 1),)}
        return [SampleSize(key, 6, 3, slots, {"vision": (1,)}) for key in (0, 1)]

    def load(self, key: int) -> Sample:
        labels = np.array([IGNORE, 7, IGNORE, 1, 2, IGNORE])
        return Sample(key, np.arange(6), labels, answer_start=4)

    def text(self, token_ids: Sequence[int]) -> str:
        return " ".join("abcdefgh"[token] for token in token_ids)


def test_only_the_answer_that_is_generated_is_compared() -> None:
    source = _Conversations()
    samples = tuple(source.sizes("evaluation"))
    plan = StepPlan(-1, samples, {"language": (((0, 1),),)}, 0.0)
    reports = [
        RankReport(0, loss_sum=3.0, answers={0: [1, 2]}),
        RankReport(1, loss_sum=9.0, answers={1: [1, 3]}),
    ]
    found = fold_evaluation(source, plan, reports, 5)
    assert [answer.true for answer in found.answers] == ["b c", "b c"]
    assert (found.step, found.loss, found.exact_match, found.token_f1) == (5, 2.0, 0.5, 0.75)
    assert found.accuracy == pytest.approx(5 / 6)
