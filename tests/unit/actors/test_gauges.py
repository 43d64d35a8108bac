"""What is set in Ray's metrics, and that the dashboard and the docs speak of the same ones."""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from actors import gauges
from tests.unit.metrics.steps import evaluation, measures, record

_ROOT = Path(__file__).parents[3]
_DASHBOARD = _ROOT / "deploy" / "grafana" / "disagg_train.json"
_WAIT_S = 30.0
_OF_PROMETHEUS = r"(_bucket|_sum|_count)$"


class _Metric:
    """Stands for Ray's metrics: keeps what it is set to, by its tags without the run's."""

    made: dict[str, "_Metric"]

    def __init__(self, name: str, description: str, *more: Any) -> None:
        self.tag_keys, self.description = more[-1], description
        self.values: dict[tuple[str, ...], list[float]] = {}
        self.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> Self:
        self._run = tags
        return self

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        all_tags = self._run | (tags or {})
        assert set(all_tags) == set(self.tag_keys)
        assert all_tags.pop("run") == "digits"
        self.values.setdefault(tuple(all_tags.values()), []).append(value)

    observe = set

    def inc(self, value: float = 1.0) -> None:
        assert value > 0
        self.set(value)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, _Metric]:
    """Return all metrics that come to be made, each set only when a test sets it."""
    monkeypatch.setattr(gauges, "_AGAIN_S", 3600.0)
    monkeypatch.setattr(_Metric, "made", {}, raising=False)
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(gauges, kind, _Metric)
    return _Metric.made


def wait_until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + _WAIT_S
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.001)


def _values(made: dict[str, _Metric], name: str) -> dict[tuple[str, ...], list[float]]:
    return made[f"disagg_train_{name}"].values


def test_a_step_is_shown_with_its_run_and_module(made: dict[str, _Metric]) -> None:
    metrics = gauges.RayMetrics("digits")
    for step in (0, 1):
        metrics.add_step(replace(measures(step, restarts=step), mfu=0.4))
    assert _values(made, "step") == {(): [1, 2]}
    assert _values(made, "step_time_seconds") == {(): [2.0, 2.0]}
    assert _values(made, "steps_total") == {(): [1.0, 1.0]}
    assert _values(made, "tokens_total") == {(): [50, 50]}
    assert _values(made, "mfu") == {(): [0.4, 0.4]}
    assert _values(made, "restarts") == {(): [0, 1]}
    assert _values(made, "module_bubble") == {("vision",): [0.75] * 2, ("language",): [0.25] * 2}
    assert _values(made, "boundary_gbytes_per_second") == {("vision->language",): [2.0] * 2}
    assert _values(made, "queue_depth") == {("plans",): [1, 1]}


def test_what_is_not_known_is_not_shown(made: dict[str, _Metric]) -> None:
    gauges.RayMetrics("digits").add_step(measures(0))
    for name in ("mfu", "loss_scale", "peak_activation_bytes"):
        assert _values(made, name) == {}


def test_what_is_known_of_fp16_is_shown(made: dict[str, _Metric]) -> None:
    scaled = replace(record(0), loss_scale=64.0, peak_activation_bytes=5)
    gauges.RayMetrics("digits").add_step(replace(measures(0), record=scaled))
    assert _values(made, "loss_scale") == {(): [64.0]}
    assert _values(made, "peak_activation_bytes") == {(): [5]}


def test_an_evaluation_is_shown_by_score(made: dict[str, _Metric]) -> None:
    gauges.RayMetrics("digits").add_evaluation(evaluation(1))
    assert _values(made, "evaluation")["token_f1",] == [0.75]
    assert set(_values(made, "evaluation")) == {
        ("loss",),
        ("accuracy",),
        ("exact_match",),
        ("token_f1",),
    }


def test_steps_that_are_taken_back_are_not_done(made: dict[str, _Metric]) -> None:
    metrics = gauges.RayMetrics("digits")
    metrics.add_step(measures(5))
    metrics.rewind(2)
    assert _values(made, "step") == {(): [6, 2]}


def test_gauges_are_set_again_until_the_run_ends(
    made: dict[str, _Metric], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "_AGAIN_S", 0.001)
    before = set(threading.enumerate())
    metrics = gauges.RayMetrics("digits")
    (thread,) = set(threading.enumerate()) - before
    metrics.add_step(measures(4))
    metrics.add_evaluation(evaluation(5))
    of_step, of_score = _values(made, "step"), _values(made, "evaluation")
    wait_until(lambda: len(of_step[()]) > 3 and len(of_score["loss",]) > 3)
    metrics.close(ok=True)
    thread.join(_WAIT_S)
    assert not thread.is_alive()
    assert set(of_step[()]) == {5}
    assert _values(made, "steps_total") == {(): [1.0]}


def test_the_dashboard_asks_for_what_there_is(made: dict[str, _Metric]) -> None:
    gauges.RayMetrics("digits")
    panels = json.loads(_DASHBOARD.read_text())["panels"]
    asked = {
        re.sub(_OF_PROMETHEUS, "", name)
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"ray_(disagg_train_\w+)", target["expr"])
    }
    assert asked <= made.keys()
    assert len(asked) > 20


def test_every_metric_is_documented(made: dict[str, _Metric]) -> None:
    gauges.RayMetrics("digits")
    text = (_ROOT / "docs" / "monitoring.md").read_text()
    assert not [name for name in made if f"`{name.removeprefix('disagg_train_')}`" not in text]
