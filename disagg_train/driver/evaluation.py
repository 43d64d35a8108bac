"""Fold the ranks' reports of an evaluation into one record."""

import string
from collections import Counter
from collections.abc import Sequence

from disagg_train.data.source import DataSource, load_part
from disagg_train.metrics.records import Answer, Evaluation, RankReport
from disagg_train.planner.step_plan import StepPlan


def fold_evaluation(
    source: DataSource, plan: StepPlan, reports: Sequence[RankReport], step: int
) -> Evaluation:
    """Return how the model did.

    Args:
        source: knows the right answers.
        plan: the evaluation's plan.
        reports: of all ranks; tp ranks report the same answers.
        step: training steps done.
    """
    generated = {key: tokens for report in reports for key, tokens in report.answers.items()}
    answers, right, total = [], 0, 0
    for sample in plan.samples:
        true = _true_answer(source, sample.key)
        predicted = source.text(generated[sample.key])
        answers.append(Answer(sample.key, predicted, true))
        if sample.slots:
            right += sum(a == b for a, b in zip(predicted, true, strict=False))
            total += len(true)
    return Evaluation(
        step=step,
        loss=sum(report.loss_sum for report in reports) / max(plan.num_target_tokens, 1),
        accuracy=right / max(total, 1),
        exact_match=_mean([exact_match(a.predicted, a.true) for a in answers]),
        token_f1=_mean([token_f1(a.predicted, a.true) for a in answers]),
        answers=answers,
    )


def exact_match(predicted: str, true: str) -> bool:
    """Whether two answers are the same words, but for case and the punctuation around them."""
    return _words(predicted) == _words(true)


def token_f1(predicted: str, true: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words, in any order."""
    found, wanted = _words(predicted), _words(true)
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def _words(text: str) -> list[str]:
    stripped = (word.strip(string.punctuation) for word in text.casefold().split())
    return [word for word in stripped if word]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _true_answer(source: DataSource, key: int) -> str:
    """Return what is to be generated: of a conversation's answers, the last."""
    sample = load_part(source, key, ())
    labels = sample.labels_S[max(sample.answer_start - 1, 0) :]
    return source.text([int(label) for label in labels[labels >= 0]])
