"""The command ``disagg-train plan``."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def add_plan_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of ``plan`` to what every command on a job file has."""
    command.add_argument(
        "--gpus",
        required=True,
        metavar="N|KIND=N,...",
        help="GPUs to lay the job out over: a number, or numbers of several kinds",
    )
    command.add_argument(
        "--gpu-kind", default="H100", metavar="NAME", help="of a plain number of GPUs (H100)"
    )
    command.add_argument(
        "--samples", type=int, default=4096, metavar="N", help="samples to look at (4096)"
    )
    command.add_argument(
        "--profile",
        metavar="FOLDER",
        help="take costs from what `disagg-train profile` measured, in place of --gpu-kind",
    )
    command.add_argument("--write", metavar="FILE", help="write the best layout as a job file")
    command.add_argument("--json", action="store_true", help="print the answer as JSON only")


def plan(arguments: argparse.Namespace) -> int:
    """Plan a job, and print the answer."""
    from rich.console import Console

    from disagg_train.config.load import load_job
    from disagg_train.driver.cost_sources import by_profile, by_size, pools_named
    from disagg_train.driver.planning import plan_job

    if arguments.profile:
        source, kind = by_profile(Path(arguments.profile)), None
    else:
        source, kind = by_size(arguments.gpu_kind), arguments.gpu_kind
    job = load_job(arguments.job, arguments.overrides)
    answer = plan_job(job, pools_named(arguments.gpus, kind), source, arguments.samples)
    if arguments.write:
        answer.write(Path(arguments.write))
    if arguments.json:
        print(json.dumps(answer.as_dict()))
    else:
        Console().print(answer.tables())
    return 0


def planned(arguments: argparse.Namespace, console: "Console") -> dict[str, Any]:
    """Return the content of the job file that ``--plan auto`` trains, and say what it is."""
    from disagg_train.config.load import load_job
    from disagg_train.driver.planning import plan_in_place

    answer = plan_in_place(load_job(arguments.job, arguments.overrides))
    console.print(answer.tables())
    return answer.content
