"""How ranks' spans become seconds per module."""

from disagg_train.metrics.records import RankReport, Span, module_times
from disagg_train.metrics.trace import chrome_trace


def _reports() -> list[RankReport]:
    def spans(*entries: tuple[str, str, float]) -> tuple[Span, ...]:
        return tuple(Span(f"{c} {s}", s, c, 10.0, 10.0 + d) for s, c, d in entries)

    boundary = "vision->language"
    return [
        RankReport(
            0, ("vision",), spans=spans(("vision", "forward", 1.0)), sent_bytes={boundary: 100}
        ),
        RankReport(
            1,
            ("vision",),
            spans=spans(("vision", "forward", 2.0), ("vision", "forward", 0.5)),
            sent_bytes={boundary: 50},
        ),
        RankReport(
            2,
            ("language",),
            spans=spans(("language", "backward", 3.0), (boundary, "boundary", 0.25)),
            sent_bytes={boundary: 30},
        ),
    ]


def test_a_modules_time_is_its_slowest_ranks() -> None:
    times = module_times(_reports(), ["vision", "language"])
    assert times["vision"].forward_s == 2.5
    assert times["language"].backward_s == 3.0
    assert times["language"].boundary_s == 0.25


def test_bytes_are_those_that_the_modules_own_ranks_sent() -> None:
    times = module_times(_reports(), ["vision", "language"])
    assert times["vision"].boundary_bytes == 150
    assert times["language"].boundary_bytes == 30


def test_a_trace_has_a_slice_per_span_in_microseconds() -> None:
    trace = chrome_trace([_reports()], {0: "encoders 0"})
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(slices) == 5
    assert slices[0]["dur"] == 1_000_000
