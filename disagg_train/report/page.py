"""The report of a run: one HTML page that needs nothing but a browser."""

from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from disagg_train.boundary.of_job import job_graph
from disagg_train.driver.simulation import seconds
from disagg_train.errors import PlanError
from disagg_train.report.curves import charts
from disagg_train.report.microbatch_work import busiest, spread, works_of
from disagg_train.report.module_shares import KINDS
from disagg_train.report.placement import group_cards
from disagg_train.report.predictions import planned, simulated
from disagg_train.report.recorded import Recorded, analyse
from disagg_train.report.redaction import Redaction
from disagg_train.report.run_folder import RunFolder, read_folder
from disagg_train.schedule.comparison import SimulationResult

_SCRIPTS = ("columns.js", "curves.js", "step.js", "painter.js", "timeline.js", "page.js")
_MOST_LISTED = 50
"""Rows of a table of samples, and failures that are shown."""

View = dict[str, Any]


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Write the report of a run.

    The page holds all that it shows, and no secrets: of the job only what says where modules
    are, and texts of errors without what looks like a key or is a value of the environment.

    Args:
        folder: of a run: finished, failed, or running.
        path: of the page; ``report.html`` in the run's folder where not given.

    Returns:
        The page's path.

    Raises:
        ConfigError: the folder is no run's.
        DataError: a file of the run is damaged.
    """
    path = path or folder / "report.html"
    path.write_text(page_of(read_folder(folder)), encoding="utf-8")
    return path


def page_of(run: RunFolder) -> str:
    """Return the page of a run as HTML."""
    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["zip"] = zip
    environment.filters |= {"seconds": seconds, "percent": "{:.1%}".format}
    recorded, curves = analyse(run), charts(run.records, run.evaluations)
    return environment.get_template("page.html").render(
        _view(run, recorded),
        charts=curves,
        style=Markup(_resource("page.css")),
        script=Markup("\n".join(map(_resource, _SCRIPTS))),
        data={**recorded.data, "charts": [asdict(chart) for chart in curves]},
    )


def _resource(name: str) -> str:
    folder = resources.files("disagg_train.report").joinpath("resources")
    return folder.joinpath(name).read_text(encoding="utf-8")


def _view(run: RunFolder, recorded: Recorded) -> View:
    """Return what the template shows."""
    hide = Redaction.of(run.job.model_dump(mode="json"))
    return {
        "name": run.job.name,
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "tiles": _tiles(run, recorded),
        "groups": group_cards(run.job),
        "has_steps": bool(recorded.timelines),
        "kinds": KINDS,
        "shares": {name: asdict(shares) for name, shares in recorded.shares.items()},
        "balance": _balance(run),
        "prediction": _prediction(run),
        "planned": planned(run),
        "failures": _failures(run, hide),
        "num_failures": len(run.failures),
        "checkpoints": run.checkpoints,
        "bad_samples": [
            (sample["key"], hide(str(sample["reason"])))
            for sample in run.bad_samples[:_MOST_LISTED]
        ],
        "num_bad_samples": len(run.bad_samples),
        "skipped_steps": [record.step for record in run.records if record.skipped],
        "missing": {name: hide(text) for name, text in run.missing.items()},
    }


def _tiles(run: RunFolder, recorded: Recorded) -> list[tuple[str, str, str]]:
    """Return the figures at the top: a name, a value, and a remark."""
    records, total = run.records, run.job.train.steps
    tiles = [("Steps", f"{len(records):,}", f"of {total:,}" + _state(len(records), total))]
    if records:
        last = records[-1]
        tiles.append(("Training loss", f"{last.loss:.3f}", f"from {records[0].loss:.3f}"))
        step_s = median(record.step_time_s for record in records)
        tiles.append(("Step", seconds(step_s), "median"))
        tokens = median(record.tokens_per_s for record in records)
        tiles.append(("Throughput", f"{tokens:,.0f}", "LLM tokens per second, median"))
    if run.evaluations:
        newest = run.evaluations[-1]
        remark = f"exact match {newest.exact_match:.0%}"
        tiles.append(("Held-out loss", f"{newest.loss:.3f}", remark))
    if (slowest := recorded.slowest) is not None:
        place, count = slowest
        name = run.rows.get(place, f"rank/{place}")
        tiles.append(("Slowest rank", name, f"in {count} of {len(recorded.timelines)} steps"))
        tiles.append(("Idle", f"{recorded.idle:.0%}", "of a rank's time, traced steps"))
    return tiles


def _state(done: int, total: int) -> str:
    return "" if done >= total else "; still running, stopped or failed"


def _balance(run: RunFolder) -> list[View]:
    """Return per module how even its microbatches are; nothing where no plan is known."""
    found = []
    for name, works in works_of(run.job, [s.plan for s in run.steps if s.plan]).items():
        in_order, as_planned = [w.in_order for w in works], [w.planned for w in works]
        found.append(
            {
                "module": name,
                "first": works[0],
                "most": max(1.0, *works[0].in_order, *works[0].planned),
                "busiest": (busiest(in_order), busiest(as_planned)),
                "spread": (spread(in_order), spread(as_planned)),
                "steps": len(works),
            }
        )
    return found


def _prediction(run: RunFolder) -> SimulationResult | str:
    """Return how simulated steps compare with measured ones, or why that is not known."""
    try:
        found = simulated(run, job_graph(run.job))
    except PlanError as error:
        return f"The steps cannot be simulated: {error}"
    return found or "Needs the recorded steps (trace.json) and their op lists (schedule.yaml)."


def _failures(run: RunFolder, hide: Redaction) -> list[tuple[int, str, str]]:
    """Return the newest failures: the step, the headline, and the report for people."""
    shown = partial(_shown, hide)
    texts = [*run.failure_texts, *[""] * len(run.failures)]
    pairs = list(zip(run.failures, texts, strict=False))[-_MOST_LISTED:]
    return [shown(failure, text) for failure, text in pairs]


def _shown(hide: Redaction, failure: View, text: str) -> tuple[int, str, str]:
    headline = str(failure.get("headline", failure.get("message", "no message")))
    return int(failure.get("step", 0)), hide(headline), hide(text)
