"""Plans a job file: reads the sizes of its data, asks the planner, and tells people the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.table import Table

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig
from disagg_train.config.planned import PlannedConfig
from disagg_train.data.index import checked_sizes
from disagg_train.data.source import open_source
from disagg_train.driver.cost_sources import CostSource, best_known, pools_of
from disagg_train.driver.plans import training_batches
from disagg_train.driver.schedules import checked_training_schedule
from disagg_train.driver.simulation import gibibytes, seconds
from disagg_train.planner.candidates import Pool
from disagg_train.planner.finalists import Finalist
from disagg_train.planner.plan import Plan, make_plan
from disagg_train.planner.workload import Batches
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import Schedule

USUAL_SAMPLES = 4096
"""Of the data set to look at."""

MOST_BATCHES = 4
"""Steps of them that layouts are simulated on; ratios of work come from all samples."""


@dataclass(frozen=True)
class Answer(JupyterMixin):
    """What the planner says of a job; a notebook's cell, and rich, show its tables.

    Args:
        job: as it was given.
        plan: the plan.
        num_samples: that it was made from.
        costs: where the costs are from.
        took_s: seconds that planning took.
    """

    job: JobConfig
    plan: Plan
    num_samples: int
    costs: CostSource
    took_s: float

    @property
    def content(self) -> dict[str, Any]:
        """The job file of the best layout, with what was expected of it."""
        return self.plan.best.candidate.content(self.job) | {"plan": self._expected()}

    def write(self, path: Path) -> None:
        """Write the job file of the best layout."""
        path.write_text(yaml.safe_dump(self.content, sort_keys=False))

    def _expected(self) -> dict[str, Any]:
        margin, best = self.plan.margin, self.plan.best
        busy_s = dict(best.estimate(self.plan.batches).busy_s)
        expected = PlannedConfig(
            busy_s=busy_s, lowest=margin.low, highest=margin.high if margin.above else None
        )
        return expected.model_dump(mode="json", exclude_none=True)

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as plain data."""
        plan = self.plan
        return {
            "job": self.job.name,
            **{role: _as_dict(each, plan.batches) for role, each in self._shown()},
            "best_is_homogeneous": plan.best_is_homogeneous,
            "encoder_to_llm_ratio": plan.ratio.ratio,
            "margin": [plan.margin.low, plan.margin.high if plan.margin.above else None],
            "b_min": plan.b_min,
            "samples": self.num_samples,
            "ranked": plan.num_ranked,
            "simulated": plan.num_simulated,
            "costs": self.costs.text,
            "notes": list(self.costs.notes(plan.best.job)),
            "took_s": self.took_s,
        }

    def __rich__(self) -> RenderableType:
        return self.tables()

    def tables(self) -> RenderableType:
        """Return what people read: the layouts side by side, why others lost, how sure it is."""
        plan = self.plan
        table = Table(title=f"{self.job.name}: layouts", title_justify="left")
        for column in ("", "layout", "step", "tokens/s", "waits", "memory"):
            table.add_column(column)
        for role, each in self._shown():
            table.add_row(role, *_cells(each, plan.batches))
        lost = [
            f"{role} lost: {why_it_lost(each, plan.best, plan.batches)}"
            for role, each in self._shown()[1:]
        ]
        if plan.best_is_homogeneous:
            lost.append("the best layout is the homogeneous one, too")
        return Group(table, *lost, _certainty(plan), *self._notes())

    def _notes(self) -> list[str]:
        return [
            f"{self.plan.num_ranked} layouts ranked, {self.plan.num_simulated} simulated on "
            f"{len(self.plan.batches)} batches of {self.num_samples} samples in "
            f"{seconds(self.took_s)}; costs: {self.costs.text}",
            *self.costs.notes(self.plan.best.job),
        ]

    def _shown(self) -> list[tuple[str, Finalist]]:
        plan = self.plan
        other = None if plan.best_is_homogeneous else plan.homogeneous
        shown = {"best": plan.best, "runner-up": plan.runner_up, "homogeneous": other}
        return [(role, each) for role, each in shown.items() if each is not None]


def plan_job(
    job: JobConfig, pools: Sequence[Pool], costs: CostSource, num_samples: int = USUAL_SAMPLES
) -> Answer:
    """Plan a job for some GPUs.

    Args:
        job: a validated job; its layout does not matter.
        pools: the GPUs.
        costs: says what modules cost.
        num_samples: of the data set to look at.

    Raises:
        PlanError: nothing fits.
    """
    begin_s = perf_counter()
    sizes = checked_sizes(open_source(job), job, "train")
    drawn = training_batches(job, sizes)
    count = max(1, num_samples // job.train.global_batch)
    batches = tuple(islice(drawn, count))
    samples = [sample for batch in batches for sample in batch]
    plan = make_plan(job, pools, costs.costs_of, staged, batches[:MOST_BATCHES], samples)
    return Answer(job, plan, len(samples), costs, perf_counter() - begin_s)


def plan_in_place(job: JobConfig) -> Answer:
    """Plan a job for as many ranks as it asks for, by the best known costs.

    Raises:
        PlanError: nothing fits.
    """
    return plan_job(job, pools_of(job), best_known(job))


def staged(job: JobConfig) -> tuple[Schedule, StageGraph]:
    """Return the op lists of a job's training step, and its stage graph."""
    graph = job_graph(job)
    return checked_training_schedule(job, graph), graph


def why_it_lost(loser: Finalist, best: Finalist, batches: Batches) -> str:
    """Return what a layout spends more GPU time on than the best one, for people."""
    times = loser.estimate(batches).step_s / best.estimate(batches).step_s
    spent, least = _gpu_seconds(loser, batches), _gpu_seconds(best, batches)
    excess = {what: spent[what] - least[what] for what in spent}
    what = max(excess, key=lambda each: excess[each])
    slower = f"a step takes {times:.2f}x as long; "
    if what == "":
        parts = [_waits(each, batches) for each in (loser, best)]
        return slower + f"its GPUs wait {parts[0]:.0%} of it, the best's {parts[1]:.0%}"
    shape, other = (_shape(each, what) for each in (loser, best))
    more = spent[what] / least[what]
    return slower + f"{what} takes {more:.2f}x the GPU time with {shape} in place of {other}"


def _gpu_seconds(finalist: Finalist, batches: Batches) -> dict[str, float]:
    """Return GPU seconds of a step per module, and those of waits under the empty name."""
    estimate, candidate = finalist.estimate(batches), finalist.candidate
    spent = {
        name: estimate.busy_s[name] * candidate.team_of(name).ranks for name in candidate.shapes
    }
    total = estimate.step_s * sum(team.ranks for team in candidate.teams)
    return spent | {"": total - sum(spent.values())}


def _waits(finalist: Finalist, batches: Batches) -> float:
    spent = _gpu_seconds(finalist, batches)
    return spent[""] / sum(spent.values())


def _certainty(plan: Plan) -> str:
    """Return how far the data may move before the choice changes."""
    margin, ratio = plan.margin, plan.ratio.ratio
    ends = []
    if margin.below is not None:
        ends.append(f"below {margin.low * ratio:.3g} {layout_of(margin.below)} is quicker")
    if margin.above is not None:
        ends.append(f"above {margin.high * ratio:.3g} {layout_of(margin.above)}")
    moves = "; ".join(ends) or "no other ratio between a quarter and four times it changes that"
    enough = f"b_min (samples that tell it well enough): {plan.b_min or 'none'}"
    return f"encoders : LLM = {ratio:.3g} in GPU time; {moves}\n{enough}"


def layout_of(finalist: Finalist) -> str:
    """Return groups and degrees, for people."""
    candidate = finalist.candidate
    return "; ".join(
        f"{team.ranks} {team.gpu_kind or 'GPUs'}: "
        + ", ".join(f"{name} {_shape(finalist, name)}" for name in team.modules)
        for team in candidate.teams
    )


def _shape(finalist: Finalist, module: str) -> str:
    candidate = finalist.candidate
    shape = candidate.shapes[module]
    degrees: Mapping[str, int] = {
        "tp": shape.tp,
        "cp": shape.cp,
        "pp": shape.pp,
        "vpp": shape.vpp,
        "ep": shape.ep,
        "dp": candidate.dp(module),
    }
    cut = " ".join(f"{name}{n}" for name, n in degrees.items() if n > 1) or "dp1"
    return cut + (", recomputed" if shape.recompute != "none" else "")


def _cells(finalist: Finalist, batches: Batches) -> tuple[str, ...]:
    estimate, candidate = finalist.estimate(batches), finalist.candidate
    window = "" if candidate.window == candidate.microbatches else f", window {candidate.window}"
    span = f", span {candidate.span}" if candidate.span else ""
    count = candidate.microbatches
    passes = f"{count} microbatch{'es' * (count > 1)}, {candidate.schedule}{window}{span}"
    memory = ", ".join(gibibytes(each) for each in estimate.num_bytes.values())
    return (
        f"{layout_of(finalist)}\n{passes}",
        seconds(estimate.step_s),
        f"{estimate.tokens_per_s:,.0f}",
        f"{_waits(finalist, batches):.0%}",
        memory,
    )


def _as_dict(finalist: Finalist, batches: Batches) -> dict[str, Any]:
    estimate, candidate = finalist.estimate(batches), finalist.candidate
    return {
        "placement": candidate.placement,
        "groups": {
            team.name: {"ranks": team.ranks, "gpu": team.gpu_kind} for team in candidate.teams
        },
        "modules": {name: _shape(finalist, name) for name in candidate.shapes},
        "microbatches": candidate.microbatches,
        "window": candidate.window,
        "schedule": candidate.schedule,
        "deferral_span": candidate.span,
        "step_s": estimate.step_s,
        "tokens_per_s": estimate.tokens_per_s,
        "waits": _waits(finalist, batches),
        "bytes": dict(estimate.num_bytes),
    }
