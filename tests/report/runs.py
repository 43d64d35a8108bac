"""Run folders as runs leave them, made without running: steps are simulated."""

from pathlib import Path
from typing import Any

from disagg_train.boundary.of_job import job_graph, job_placement
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job, save_job
from disagg_train.driver.schedules import job_schedules
from disagg_train.driver.step_planner import StepPlanner
from disagg_train.metrics.records import Evaluation, ModuleTimes, RankReport, Span, StepRecord
from disagg_train.metrics.run_files import RunFiles
from disagg_train.metrics.trace import START_STEP
from disagg_train.planner.analytic_costs import analytic_costs
from disagg_train.planner.machine import Machine
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.schedule.file import save_schedule
from disagg_train.schedule.simulate import simulate
from disagg_train.schedule.timeline import span_of

MACHINE = Machine(flops_per_s=2e11, link_bytes_per_s=1e9, latency_s=2e-4, memory_bytes_per_s=1e10)
_BEGAN_S = 1.7e9


def job_of(
    folder: Path,
    encoder_ranks: int = 2,
    language: dict[str, int] | None = None,
    **train: Any,
) -> JobConfig:
    """Return a job whose encoder is on dp ranks of its own."""
    parallel = {"tp": 2, "sp": True} | (language or {})
    ranks = parallel["tp"] * parallel.get("pp", 1) * parallel.get("dp", 1)
    content = {
        "name": "simulated",
        "groups": {"encoders": {"ranks": encoder_ranks}, "language": {"ranks": ranks}},
        "modules": {
            "vision": {
                "kind": "vit",
                "group": "encoders",
                "parallel": {"dp": encoder_ranks},
                "model": {"num_layers": 4, "hidden_size": 96, "num_attention_heads": 4}
                | {"patch_size": 4},
                "projector": {"kind": "mlp", "merge": 4},
            },
            "language": {
                "kind": "gpt",
                "group": "language",
                "parallel": parallel,
                "model": {"num_layers": 8, "hidden_size": 128, "num_attention_heads": 4},
            },
        },
        "train": {"steps": 60, "global_batch": 16, "microbatches": 2, "optimizer": {"lr": 1e-3}}
        | train,
        "output": str(folder),
    }
    return load_job(content)


def sizes_of(count: int, seed: int) -> tuple[SampleSize, ...]:
    """Return samples of mixed sizes; every fifth is text alone."""
    found = []
    for key in range(count):
        patches = 0 if key % 5 == 4 else 16 * (1 + (7 * key + 3 * seed) % 13)
        rows, text = patches // 4, 20 + (11 * key + 5 * seed) % 60
        slots = {"vision": (Slot(1, rows),)} if patches else {}
        inputs = {"vision": (patches,)} if patches else {}
        found.append(SampleSize(key, rows + text, text // 2, slots, inputs))
    return tuple(found)


def step_of(job: JobConfig, step: int) -> tuple[StepPlan, list[RankReport]]:
    """Return a step's plan, and what ranks would report of it."""
    plan = StepPlanner(job).plan(step, sizes_of(job.train.global_batch, step))
    graph, (schedule, _) = job_graph(job), job_schedules(job)
    timeline = simulate(schedule, graph, analytic_costs(job, graph, plan, MACHINE))
    began_s = _BEGAN_S + 10 * step
    reports = []
    for place in range(job.num_ranks):
        spans = [Span(START_STEP, "", "update", began_s, began_s + 1e-3)]
        for each in timeline.slices[place]:  # a rank's waits are in its spans
            end_s = began_s + 1e-3 + each.end_s
            spans.append(span_of(each.op, spans[-1].end_s, max(spans[-1].end_s, end_s)))
        reports.append(RankReport(place, spans=spans))
    return plan, reports


def write_run(folder: Path, job: JobConfig, traced: int = 3, steps: int | None = None) -> Path:
    """Write the folder of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    save_job(job, folder / "job.yaml")
    save_schedule(job_schedules(job)[0], folder / "schedule.yaml")
    placement = job_placement(job)
    names = [f"{group} {rank}" for group in job.groups for rank in range(job.groups[group].ranks)]
    assert len(names) == placement.world_size
    with RunFiles(folder) as files:
        for step in range(steps or job.train.steps):
            files.add_step(_record(job, step), [])
            if 1 <= step <= traced:
                plan, reports = step_of(job, step)
                files.add_trace(step, reports, plan.as_dict())
        files.add_evaluation(Evaluation(steps or job.train.steps, 2.0, 0.5, 0.25, 0.4))
        files.write_trace(dict(enumerate(names)))
    return folder


def _record(job: JobConfig, step: int) -> StepRecord:
    return StepRecord(
        step=step,
        loss=2 + 3 / (step + 1),
        grad_norm=1.0 + step % 3,
        lr=1e-3,
        num_target_tokens=400,
        num_tokens=1000,
        step_time_s=0.5 + 0.01 * (step % 7),
        skipped=step == 5,
        peak_boundary_bytes=0,
        peak_activation_bytes=0,
        modules={name: ModuleTimes(0.1, 0.2, 0.01, 1000) for name in job.modules},
    )
