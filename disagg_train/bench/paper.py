"""The directions of Heterogeneous Parallelism (arXiv 2605.27678), simulated with an H100 model.

One row per kind of job (``paper_cases``), and no constant is set for a row. The planner finds the
best colocated and the best disjoint layout; both are compared with the paper's baseline, one layout
for all modules (``homogeneous``). All have what the paper's layouts have: encoders without
pipeline stages, the LLM's 1F1B without interleaving, recomputation where it pays.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from rich.table import Table

from disagg_train.bench.homogeneous import best_homogeneous
from disagg_train.bench.machine import commit
from disagg_train.bench.paper_cases import CASES, Case
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.driver.planning import layout_of, staged
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.candidates import Placement, Pool
from disagg_train.planner.finalists import Field, Finalist, quickest
from disagg_train.planner.gpus import gpu, hardware_of
from disagg_train.planner.module_options import ModuleOptions
from disagg_train.planner.options import Option
from disagg_train.planner.search import Search
from disagg_train.planner.shapes import Shape
from disagg_train.planner.step_costs import JobCosts
from disagg_train.planner.workload import Workload

REPORTED = MappingProxyType({"colocated": (0.493,), "disjoint": (0.096, 0.130)})
"""Largest gains that the paper reports over all of its jobs, so no row's: TFLOPS per GPU, and for
disjoint groups also tokens/s of all GPUs."""

HOMOGENEOUS = "homogeneous"
_GPU = "H100"
_PLACEMENTS: tuple[Placement, ...] = ("colocated", "disjoint")
_SIMULATED = 6
"""Of each placement."""


@dataclass(frozen=True)
class RowResult:
    """What becomes of a kind of job.

    Args:
        job: its name.
        expected: what the paper says of it.
        gain: per placement, tokens/s and GPU over those of the homogeneous layout, less 1.
        gain_in_all: the same of tokens/s.
        gain_over_sp: as ``gain``, over a homogeneous layout whose encoder has sequence parallelism.
        tokens_per_s: per layout.
        gpus: per layout.
        layouts: for people.
    """

    job: str
    expected: str
    gain: Mapping[str, float]
    gain_in_all: Mapping[str, float]
    gain_over_sp: Mapping[str, float]
    tokens_per_s: Mapping[str, float]
    gpus: Mapping[str, int]
    layouts: Mapping[str, str]


@dataclass(frozen=True)
class PaperResult:
    """All rows."""

    rows: tuple[RowResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data, with what it was made on."""
        return asdict(self) | {"reported": dict(REPORTED), "gpu": _GPU, "commit": commit()}

    def tables(self) -> tuple[Table, Table]:
        """Return the gains beside the paper's, and the layouts behind them, for people."""
        gains = _table("tokens/s and GPU, over one layout for all", "gain, in the paper")
        for row in self.rows:
            gains.add_row(
                row.job, row.expected, *(f"{row.gain[each]:+.1%}" for each in _PLACEMENTS)
            )
        gains.add_section()
        most = (" and ".join(f"{each:+.1%}" for each in REPORTED[name]) for name in _PLACEMENTS)
        gains.add_row("largest of the paper's", "", *most)
        layouts = Table(title="layouts", title_justify="left")
        for column in ("job", "", "layout", "tokens/s and GPU"):
            layouts.add_column(column, justify="right" if column.startswith("tokens") else "left")
        for row in self.rows:
            for name, layout in row.layouts.items():
                speed = f"{row.tokens_per_s[name] / row.gpus[name]:,.0f}"
                layouts.add_row(row.job if name == HOMOGENEOUS else "", name, layout, speed)
            layouts.add_section()
        return gains, layouts


def _table(title: str, expected: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("job", expected):
        table.add_column(column)
    for placement in _PLACEMENTS:
        table.add_column(placement, justify="right")
    return table


def run_paper() -> PaperResult:
    """Find the layouts of every kind of job."""
    return PaperResult(tuple(run_case(name, case) for name, case in CASES.items()))


def run_case(name: str, case: Case) -> RowResult:
    """Find the layouts of one kind of job."""
    job, batches = case.job(name), (case.batch(),)
    machine = gpu(_GPU).machine(job.train.precision)
    alike = best_homogeneous(case, job, machine)
    with_sp = best_homogeneous(case, job, machine, encoder_sp=True)
    tokens = case.samples * case.sequence_tokens
    speed, gpus = {HOMOGENEOUS: tokens / alike.step_s}, {HOMOGENEOUS: case.gpus}
    layouts = {HOMOGENEOUS: f"{case.gpus} {_GPU}: {alike}"}
    for placement in _PLACEMENTS:
        gpus[placement] = case.gpus_disjoint if placement == "disjoint" else case.gpus
        best = _best(case, job, gpus[placement], placement)
        speed[placement] = best.estimate(batches).tokens_per_s
        layouts[placement] = layout_of(best)
    in_all: dict[str, float] = {}
    per_gpu: dict[str, float] = {}
    over_sp: dict[str, float] = {}
    for each in _PLACEMENTS:
        times = speed[each] / speed[HOMOGENEOUS]
        share = case.gpus / gpus[each]
        in_all[each], per_gpu[each] = times - 1, times * share - 1
        over_sp[each] = times * share * with_sp.step_s / alike.step_s - 1
    return RowResult(name, case.expected, per_gpu, in_all, over_sp, speed, gpus, layouts)


class _PaperOptions(ModuleOptions):
    """The shapes that the paper's modules have: whole encoders, and no interleaving.

    Args:
        case: the kind of job.
        job: made of it.
    """

    def __init__(self, case: Case, job: JobConfig) -> None:
        super().__init__(job, _costs_of, Workload.of(job, (case.batch(),)))
        self._least_cp = case.least_cp

    def option(
        self, name: str, pool: Pool, shape: Shape, dp: int, microbatches: int, run: int = 1
    ) -> Option | None:
        """Return a shape's option; None for other shapes, too."""
        if shape.vpp > 1 or (shape.cp < self._least_cp if name == LANGUAGE else shape.pp > 1):
            return None
        return super().option(name, pool, shape, dp, microbatches, run)


def _best(case: Case, job: JobConfig, gpus: int, placement: Placement) -> Finalist:
    """Return the quickest layout of a placement."""
    machine, batches = gpu(_GPU).machine(job.train.precision), (case.batch(),)
    pool = Pool(gpus, machine.memory_bytes, machine.ranks_per_node, _GPU)
    ranked = Search(job, [pool], _PaperOptions(case, job)).ranked()[placement]
    plain = (replace(each.candidate, schedule="1f1b") for each in ranked)
    field = Field(job, [pool], _costs_of, staged)
    return quickest(field.fitting(plain, batches, _SIMULATED), batches)


def _costs_of(job: JobConfig) -> JobCosts:
    return costs_by_size(job, hardware_of(job, _GPU))
