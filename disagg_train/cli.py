"""The command ``disagg-train``. Heavy imports wait until a command needs them."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from disagg_train.errors import DisaggTrainError

if TYPE_CHECKING:
    from rich.console import Console

    from disagg_train.config.job import JobConfig
    from disagg_train.planner.step_plan import StepPlan
    from disagg_train.trainer import Trainer

_DESCRIPTION = "Train multimodal LLMs with every module on its own layout and its own ranks."
_INTERRUPTED, _TERMINATED = 130, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except DisaggTrainError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; all actors were ended", file=sys.stderr)
        return _INTERRUPTED


def _stop(signum: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an exit, so that actors and a local Ray are ended on the way out."""
    del signum, frame
    raise SystemExit(_TERMINATED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="disagg-train", description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = _job_command(commands, "train", _train, "train a job on Ray actor groups")
    train.add_argument("--address", help="running Ray cluster, or `auto`; default: a local one")

    check = _job_command(commands, "check", _check, "validate a job; print ranks and schedule")
    check.add_argument(
        "--write-schedule", metavar="FILE", help="also write the schedule, to edit and to train by"
    )

    _simulate_command(
        _job_command(commands, "simulate", _simulate, "step time, bubbles and memory of a step")
    )

    verify = _job_command(commands, "verify", _verify, "compare a job with one process")
    verify.add_argument("--steps", type=int, default=10, help="training steps of both runs")
    verify.add_argument("--json", action="store_true", help="print the result as JSON only")
    verify.add_argument("--address", help="running Ray cluster, or `auto`; default: a local one")

    schema = commands.add_parser("schema", help="print the job file's JSON Schema")
    schema.set_defaults(run=_schema)
    doctor = commands.add_parser("doctor", help="say what this machine has and lacks")
    doctor.set_defaults(run=_doctor)
    _bench_commands(commands.add_parser("bench", help="measure, and print JSON"))
    return parser


def _job_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text)
    command.add_argument("job", help="path of the job file")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="a.b.c=value",
        help="override a field of the job; may be repeated",
    )
    command.set_defaults(run=run)
    return command


def _simulate_command(simulate: argparse.ArgumentParser) -> None:
    simulate.add_argument(
        "--from",
        dest="run_folder",
        metavar="RUN",
        help="take the seconds of ops from the trace in this run's folder; otherwise they are "
        "computed from the sizes of the model and the four numbers below, whose defaults are "
        "those of a GPU",
    )
    for option, default, text in (
        ("--tflops", 200.0, "TFLOP/s that a rank achieves"),
        ("--gbytes-per-s", 25.0, "GB/s between two ranks, each way"),
        ("--latency-us", 20.0, "microseconds until a transfer begins"),
        ("--memory-gbytes-per-s", 2000.0, "GB/s of a rank's own memory, for the update"),
    ):
        simulate.add_argument(
            option, type=float, default=default, metavar="N", help=f"{text} ({default:g})"
        )
    simulate.add_argument("--json", action="store_true", help="print the result as JSON only")
    simulate.add_argument("--png", metavar="FILE", help="draw the timeline; needs matplotlib")
    simulate.add_argument(
        "--trace", metavar="FILE", help="write the timeline as a Chrome trace, for Perfetto"
    )


def _bench_commands(bench: argparse.ArgumentParser) -> None:
    kinds = bench.add_subparsers(required=True, metavar="WHAT")
    boundary = kinds.add_parser("boundary", help="ours, Megatron's bridge and raw messages")
    boundary.add_argument("--src", default="tp=2,dp=1", help="layout of the source")
    boundary.add_argument("--dst", default="tp=2,dp=1", help="layout of the destination")
    boundary.add_argument("--tokens", type=int, default=4096)
    boundary.add_argument("--hidden", type=int, default=1024)
    boundary.add_argument("--rounds", type=int, default=20)
    boundary.add_argument(
        "--suite", action="store_true", help="measure the list of pairs, not --src and --dst"
    )
    boundary.add_argument("--output", help="also write the JSON to this file")
    boundary.add_argument("--json", action="store_true", help="print JSON only")
    boundary.set_defaults(run=_bench_boundary)
    step = kinds.add_parser("step", help="the same op lists under Ray and without it")
    step.add_argument("--blocks", type=int, default=20, help="alternating ABBA blocks")
    step.add_argument(
        "--pp",
        action="store_true",
        help="the LLM in two pipeline stages; alone, also against Megatron's 1F1B",
    )
    step.add_argument("--json", action="store_true", help="JSON is all that is ever printed")
    step.set_defaults(run=_bench_step)


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _train(arguments: argparse.Namespace) -> int:
    from disagg_train.metrics.progress import TrainingProgress
    from disagg_train.trainer import Trainer

    trainer = Trainer(arguments.job, arguments.overrides, arguments.address)
    console = _console()
    console.print(f"starting {trainer.job.num_ranks} ranks; they need a moment to import Megatron")
    with TrainingProgress(console, trainer.job.train.steps) as progress:
        for record in trainer.fit():
            if trainer.note:
                progress.say(trainer.note)
                trainer.note = ""
            progress.update(record, trainer.evaluations)
    _report(trainer, console)
    return 0


def _report(trainer: "Trainer", console: "Console") -> None:
    if trainer.note:
        console.print(trainer.note)
    if trainer.evaluations:
        last = trainer.evaluations[-1]
        console.print(f"held-out loss {last.loss:.3f}, accuracy per character {last.accuracy:.3f}")
        for answer in last.answers[:8]:
            mark = "[green]right[/]" if answer.predicted == answer.true else "[red]wrong[/]"
            console.print(f"  predicted {answer.predicted:>14}   true {answer.true:>14}   {mark}")
    console.print(f"metrics, trace, pictures and checkpoint are in {trainer.output}/")


def _check(arguments: argparse.Namespace) -> int:
    from disagg_train.driver.describe import describe
    from disagg_train.driver.plans import job_schedules
    from disagg_train.schedule.file import save_schedule

    job, plan = _first_step(arguments)
    schedule, _ = job_schedules(job)
    _console().print(describe(job, plan, schedule))
    if arguments.write_schedule:
        save_schedule(schedule, Path(arguments.write_schedule))
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from disagg_train.driver.simulation import simulate_job
    from disagg_train.planner.analytic_costs import Machine

    machine = Machine(
        flops_per_s=arguments.tflops * 1e12,
        link_bytes_per_s=arguments.gbytes_per_s * 1e9,
        latency_s=arguments.latency_us * 1e-6,
        memory_bytes_per_s=arguments.memory_gbytes_per_s * 1e9,
    )
    run_folder = Path(arguments.run_folder) if arguments.run_folder else None
    simulation = simulate_job(*_first_step(arguments), machine, run_folder)
    if arguments.png:
        simulation.draw(Path(arguments.png))
    if arguments.trace:
        simulation.write_trace(Path(arguments.trace))
    if arguments.json:
        print(json.dumps(simulation.as_dict()))
    else:
        _console().print(simulation.tables())
    return 0


def _first_step(arguments: argparse.Namespace) -> "tuple[JobConfig, StepPlan]":
    """Return the job, and the plan of its first training step."""
    from disagg_train.config.load import load_job
    from disagg_train.data.index import checked_sizes
    from disagg_train.data.sampler import batches
    from disagg_train.data.source import open_source
    from disagg_train.driver.plans import training_plans

    job = load_job(arguments.job, arguments.overrides)
    sizes = checked_sizes(open_source(job), job, "train")
    return job, next(training_plans(job, batches(sizes, job.seed, job.train.global_batch)))


def _verify(arguments: argparse.Namespace) -> int:
    from disagg_train.trainer import Trainer

    with Trainer(arguments.job, arguments.overrides, arguments.address) as trainer:
        if not arguments.json:
            print(f"training {arguments.steps} steps twice: as the job says, and on one rank")
        parity = trainer.verify(arguments.steps)
    print(json.dumps(parity.as_dict(), indent=None if arguments.json else 2))
    return 0 if parity.ok else 1


def _schema(arguments: argparse.Namespace) -> int:
    del arguments
    from disagg_train.config.job import JobConfig

    print(json.dumps(JobConfig.model_json_schema(), indent=2))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    del arguments
    from disagg_train.doctor import examine

    sick = 0
    for finding in examine():
        mark = "FIX" if finding.fix else "ok "
        print(
            f"{mark} {finding.part}: {finding.state}" + (f" -> {finding.fix}" * bool(finding.fix))
        )
        sick += bool(finding.fix)
    return 1 if sick else 0


def _bench_boundary(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.boundary import parse_layout, run_boundary

    if arguments.suite:
        return _bench_boundary_suite(arguments)
    source, destination = parse_layout(arguments.src), parse_layout(arguments.dst)
    sizes = arguments.tokens, arguments.hidden, arguments.rounds
    text = json.dumps(run_boundary(source, destination, *sizes).as_dict())
    print(text)
    _write(text, arguments.output)
    return 0


def _bench_boundary_suite(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.boundary_suite import refusals, run_suite, suite_table, table_row

    console, table, results = _console(), suite_table(), []
    for result in run_suite(arguments.tokens, arguments.hidden, arguments.rounds):
        results.append(result)
        table.add_row(*table_row(result))
        text = json.dumps([each.as_dict() for each in results])
        _write(text, arguments.output)
        if not arguments.json:
            console.print(f"measured {result.source} -> {result.destination}", style="dim")
    if arguments.json:
        print(text)
    else:
        console.print(table, *refusals(results), sep="\n", markup=False)
    return 0


def _write(text: str, path: str | None) -> None:
    if path:
        Path(path).write_text(text + "\n")


def _bench_step(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.jobs import disjoint_job
    from disagg_train.bench.pipeline import run_pipeline
    from disagg_train.bench.step import run_step

    blocks = arguments.blocks
    result = run_pipeline(blocks) if arguments.pp else run_step(disjoint_job(), blocks)
    print(json.dumps(result.as_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
