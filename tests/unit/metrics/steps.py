"""Steps and evaluations, as a run would report them."""

from disagg_train.metrics.measures import Measures, Standing, measure
from disagg_train.metrics.records import Evaluation, ModuleTimes, RankReport, Span, StepRecord


def record(step: int, loss: float = 1.0, step_time_s: float = 2.0) -> StepRecord:
    return StepRecord(
        step=step,
        loss=loss,
        grad_norm=1.0,
        lr=0.1,
        num_target_tokens=30,
        num_tokens=50,
        step_time_s=step_time_s,
        skipped=False,
        peak_boundary_bytes=7,
        peak_activation_bytes=0,
        modules={"vision": ModuleTimes(0.1, 0.2, 0.3, 4), "language": ModuleTimes()},
    )


def reports() -> list[RankReport]:
    """Return what two ranks did in 2 s: the first computed for 0.5 s, the second for 1.5 s."""

    def span(category: str, seconds: float) -> Span:
        return Span(f"{category} stage 0", "stage", category, 10.0, 10.0 + seconds)

    return [
        RankReport(
            0,
            ("vision",),
            spans=[span("forward", 0.25), span("backward", 0.25), span("boundary", 1.0)],
            sent_bytes={"vision->language": 3 * 10**9},
        ),
        RankReport(
            1,
            ("language",),
            spans=[span("forward", 0.5), span("backward", 1.0), span("update", 0.3)],
            sent_bytes={"vision->language": 10**9, "language.0->language.1": 10**9},
        ),
    ]


def measures(step: int, loss: float = 1.0, restarts: int = 0) -> Measures:
    standing = Standing(restarts=restarts, queues={"plans": 1})
    return measure(record(step, loss), reports(), standing)


def evaluation(steps_done: int) -> Evaluation:
    return Evaluation(steps_done, 1.0, 0.5, 0.25, 0.75)
