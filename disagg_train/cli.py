"""The command ``disagg-train``. Heavy imports wait until a command needs them."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from disagg_train.bench.commands import add_bench_commands
from disagg_train.config.secret_values import masked
from disagg_train.errors import DisaggTrainError, RunStopped
from disagg_train.jobs_commands import add_jobs_commands
from disagg_train.manifest_command import add_manifest_arguments, manifest
from disagg_train.plan_command import add_plan_arguments, plan, planned
from disagg_train.process_end import INTERRUPTED, TERMINATED, QuickEnd
from disagg_train.profile_command import add_profile_arguments, profile
from disagg_train.report_command import add_report_arguments
from disagg_train.submit_command import add_submit_arguments, submit

if TYPE_CHECKING:
    from rich.console import Console

    from disagg_train.config.job import JobConfig
    from disagg_train.metrics.records import Evaluation
    from disagg_train.planner.step_plan import StepPlan
    from disagg_train.trainer import Trainer

_DESCRIPTION = "Train multimodal LLMs with every module on its own layout and its own ranks."


def script() -> NoReturn:
    """Run the command of this process, and end it with the command's exit status."""
    end = QuickEnd()
    try:
        end.status = main()
    except SystemExit as ended:
        end.status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    sys.exit(end.status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    _find_modules_of_ones_own()
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except DisaggTrainError as error:
        print(masked(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return TERMINATED if isinstance(error, RunStopped) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _find_modules_of_ones_own() -> None:
    """Import what a job names from the folder that it is started in, as ranks do."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)


def _stop(signum: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an exit, so that actors and a local Ray are ended on the way out."""
    del signum, frame
    raise SystemExit(TERMINATED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="disagg-train", description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = _job_command(commands, "train", _train, "train a job on Ray actor groups")
    train.add_argument("--address", help="running Ray cluster, or `auto`; default: a local one")
    train.add_argument(
        "--resume",
        metavar="auto|FOLDER",
        help="auto: go on from the newest sound checkpoint of the job's output, or begin; "
        "else the folder of a checkpoint. The layout may be another one",
    )
    train.add_argument(
        "--overwrite",
        action="store_true",
        help="remove checkpoints of an earlier run that stand in the way",
    )

    train.add_argument(
        "--plan",
        choices=["auto"],
        help="auto: lay the job out anew first, on as many ranks as it asks for",
    )

    train.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print every event as it happens, as the run's run.log has them",
    )

    check = _job_command(commands, "check", _check, "validate a job; print ranks and schedule")
    check.add_argument(
        "--write-schedule", metavar="FILE", help="also write the schedule, to edit and to train by"
    )

    _simulate_command(
        _job_command(commands, "simulate", _simulate, "step time, bubbles and memory of a step")
    )

    add_profile_arguments(
        _job_command(commands, "profile", profile, "measure what a job's modules take")
    )
    add_plan_arguments(
        _job_command(commands, "plan", plan, "find the best groups and layouts for some GPUs")
    )
    add_manifest_arguments(
        _job_command(commands, "manifest", manifest, "print a job as Kubernetes objects")
    )
    add_submit_arguments(
        _job_command(commands, "submit", submit, "run a job on a Ray cluster elsewhere")
    )
    add_jobs_commands(commands)

    verify = _job_command(commands, "verify", _verify, "compare a job with one process")
    verify.add_argument("--steps", type=int, default=10, help="training steps of both runs")
    verify.add_argument("--json", action="store_true", help="print the result as JSON only")
    verify.add_argument("--address", help="running Ray cluster, or `auto`; default: a local one")

    _resize_command(
        commands.add_parser("resize", help="give a group of a running job more or fewer ranks")
    )
    _run_commands(commands)
    add_report_arguments(commands.add_parser("report", help="draw a run as one HTML page"))
    schema = commands.add_parser("schema", help="print the job file's JSON Schema")
    schema.set_defaults(run=_schema)
    doctor = commands.add_parser("doctor", help="say what this machine has and lacks")
    doctor.set_defaults(run=_doctor)
    add_bench_commands(commands.add_parser("bench", help="measure, and print JSON"))
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


def _resize_command(resize: argparse.ArgumentParser) -> None:
    resize.add_argument("folder", metavar="RUN", help="output folder of a run that is training")
    resize.add_argument("group", metavar="GROUP", help="actor group")
    resize.add_argument("--ranks", type=int, required=True, help="ranks that it is to have")
    resize.set_defaults(run=_resize)


def _run_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands that take a finished run."""
    evaluate = commands.add_parser("eval", help="score a run's model on held-out samples")
    evaluate.add_argument("--json", action="store_true", help="print the result as JSON only")
    evaluate.add_argument("--address", help="running Ray cluster, or `auto`; default: a local one")
    evaluate.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="a.b.c=value",
        help="override a field of the run's job, its layout for one; may be repeated",
    )
    evaluate.set_defaults(run=_eval)
    export = commands.add_parser("export", help="write a run's model for transformers")
    export.add_argument(
        "--dtype",
        choices=["original", "fp32", "bf16"],
        default="original",
        help="precision to write in; original: of the checkpoint that the run began with",
    )
    export.add_argument(
        "--layout",
        choices=["llava", "modules", "both"],
        default="both",
        help="OUT as a LLaVA, OUT/<module> for each module alone, or both",
    )
    export.add_argument(
        "--image-token-id",
        type=int,
        metavar="ID",
        help="id that stands where an image's tokens go; default: as the data was read",
    )
    export.set_defaults(run=_export)
    for command in (evaluate, export):
        command.add_argument("folder", metavar="RUN", help="output folder of a finished run")
    export.add_argument("out", metavar="OUT", help="folder to make")


def _simulate_command(simulate: argparse.ArgumentParser) -> None:
    simulate.add_argument(
        "--from",
        dest="run_folder",
        metavar="RUN",
        help="take the seconds of ops from the trace in this run's folder; otherwise they are "
        "computed from the sizes of the model and the four numbers below, whose defaults are "
        "those of a GPU",
    )
    simulate.add_argument(
        "--gpu-kind",
        metavar="NAME",
        help="H100, H200, A100, L40S or B200: data sheet and stated efficiencies in place of the "
        "four numbers; a group's own `accelerator` goes before it",
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


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _train(arguments: argparse.Namespace) -> int:
    from disagg_train.trainer import Trainer

    console = _console()
    trainer = Trainer(
        planned(arguments, console) if arguments.plan else arguments.job,
        () if arguments.plan else arguments.overrides,
        arguments.address,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    trainer.run(console=console, verbose=arguments.verbose)
    _report(trainer, console)
    return 0


def _report(trainer: "Trainer", console: "Console") -> None:
    if trainer.evaluations:
        last = trainer.evaluations[-1]
        _report_evaluation(last, console)
    if trainer.bad.count:
        listed = trainer.output / "bad_samples.jsonl"
        console.print(f"{trainer.bad.count} bad samples were taken out; {listed} names them")
    console.print(f"metrics, trace, pictures and checkpoint are in {trainer.output}/")


def _report_evaluation(evaluation: "Evaluation", console: "Console") -> None:
    from rich.markup import escape

    console.print(
        f"held-out loss {evaluation.loss:.3f}, exact match {evaluation.exact_match:.3f}, "
        f"token F1 {evaluation.token_f1:.3f}, accuracy per character {evaluation.accuracy:.3f}",
        soft_wrap=True,
    )
    for answer in evaluation.answers[:8]:
        mark = "[green]right[/]" if answer.predicted == answer.true else "[red]wrong[/]"
        predicted, true = (escape(" ".join(t.split())) for t in (answer.predicted, answer.true))
        console.print(f"  predicted {predicted:>14}   true {true:>14}   {mark}")


def _resize(arguments: argparse.Namespace) -> int:
    from disagg_train.config.load import load_job
    from disagg_train.config.resize import resized
    from disagg_train.driver.requests import Requests, ResizeRequest

    folder = Path(arguments.folder)
    resized(load_job(folder / "job.yaml"), arguments.group, arguments.ranks)
    Requests(folder).ask(ResizeRequest(arguments.group, arguments.ranks))
    print(f"asked; the run gives {arguments.group!r} {arguments.ranks} ranks before its next step")
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from disagg_train.trainer import Trainer

    with Trainer.of_run(arguments.folder, arguments.overrides, arguments.address) as trainer:
        evaluation = trainer.evaluate()
    if arguments.json:
        print(json.dumps(evaluation.as_dict()))
    else:
        _report_evaluation(evaluation, _console())
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from disagg_train.export import export

    notes = export(
        Path(arguments.folder),
        Path(arguments.out),
        arguments.dtype,
        arguments.layout,
        arguments.image_token_id,
    )
    print("\n".join([*notes, f"written to {arguments.out}/"]))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from disagg_train.driver.describe import describe
    from disagg_train.driver.schedules import job_schedules
    from disagg_train.schedule.file import save_schedule

    job, plan = _first_step(arguments)
    schedule, _ = job_schedules(job)
    _console().print(describe(job, plan, schedule))
    if arguments.write_schedule:
        save_schedule(schedule, Path(arguments.write_schedule))
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from disagg_train.driver.simulation import simulate_job
    from disagg_train.planner.gpus import hardware_of
    from disagg_train.planner.machine import Machine

    job, plan = _first_step(arguments)
    machine = Machine(
        flops_per_s=arguments.tflops * 1e12,
        link_bytes_per_s=arguments.gbytes_per_s * 1e9,
        latency_s=arguments.latency_us * 1e-6,
        memory_bytes_per_s=arguments.memory_gbytes_per_s * 1e9,
    )
    run_folder = Path(arguments.run_folder) if arguments.run_folder else None
    hardware = hardware_of(job, arguments.gpu_kind) if arguments.gpu_kind else machine
    simulation = simulate_job(job, plan, hardware, run_folder)
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
    from disagg_train.data.source import open_source
    from disagg_train.driver.plans import training_batches, training_plans

    job = load_job(arguments.job, arguments.overrides)
    sizes = checked_sizes(open_source(job), job, "train")
    return job, next(training_plans(job, training_batches(job, sizes)))


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
    from disagg_train.config.load import job_schema

    print(json.dumps(job_schema(), indent=2))
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


if __name__ == "__main__":
    script()
