"""Fold the ranks' reports of an evaluation into one record."""

from collections.abc import Sequence

from disagg_train.data.source import DataSource
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
    loss = sum(report.loss_sum for report in reports) / max(plan.num_target_tokens, 1)
    return Evaluation(step, loss, right / max(total, 1), answers)


def _true_answer(source: DataSource, key: int) -> str:
    labels = source.load(key).labels_S
    return source.text([int(label) for label in labels[labels >= 0]])
