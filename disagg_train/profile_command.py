"""The command ``disagg-train profile``."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from disagg_train.planner.fit import Errors
    from disagg_train.planner.measurements import LinkMeasurement, ModuleMeasurement


def add_profile_arguments(profile: argparse.ArgumentParser) -> None:
    """Add the options of ``profile`` to what every command on a job file has."""
    profile.add_argument(
        "--degrees",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODULE:AXIS=N,N",
        help="degrees to measure, as vision:tp=1,2 language:tp=1,2:pp=1,2; dp takes what is left "
        "of the group's ranks; default: the job's own",
    )
    profile.add_argument(
        "--folder", metavar="FOLDER", help="of measurements (~/.cache/disagg_train/profiles)"
    )
    profile.add_argument("--json", action="store_true", help="print the measurements as JSON only")
    profile.add_argument("--address", help="running Ray cluster, or `auto`; default: a local one")


def profile(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from rich.console import Console

    from disagg_train.config.load import load_job
    from disagg_train.planner.measurements import DEFAULT_FOLDER
    from disagg_train.planner.trials import parse_degrees, trial_jobs

    console, degrees = Console(quiet=arguments.json), parse_degrees(arguments.degrees)
    trials = trial_jobs(load_job(arguments.job, arguments.overrides), degrees)

    from disagg_train.profiler import Profiler  # slow: mistakes are told before it

    folder = Path(arguments.folder or DEFAULT_FOLDER)
    with Profiler(trials, folder, arguments.address) as profiler:
        total = len(trials)
        known = total - len(profiler.missing)
        console.print(f"{known} of {total} trials are measured already, in {profiler.folder}")
        for number, measured in enumerate(profiler.run(), known + 1):
            error = measured.modules[0].step_error or 0.0
            console.print(f"trial {number} of {total}: its steps are predicted to {error:.1%}")
        modules, links = profiler.modules(), profiler.links()
    if arguments.json:
        found = {
            "modules": [module.model_dump(mode="json") for module in modules],
            "links": [link.model_dump(mode="json") for link in links],
        }
        print(json.dumps(found))
    else:
        console.print(module_table(modules), link_table(links), sep="\n")
    return 0


def module_table(modules: "Iterable[ModuleMeasurement]") -> "Table":
    """Return the coefficients of every stage's passes, and how far they are off."""
    from disagg_train.planner.measurements import degrees_of, describe_degrees

    table = _table(
        "modules",
        ("module", "degrees", "hardware", "stage", "pass", "us/token", "ns/token^2"),
        ("ms/microbatch", "rows", "error: median, worst", "held out", "steps"),
    )
    for each in modules:
        degrees = describe_degrees(degrees_of(each.parallel, each.recompute))
        for number, stage in enumerate(each.stages):
            for kind, fit in stage.passes.items():
                table.add_row(
                    each.module,
                    degrees,
                    each.hardware,
                    str(number),
                    kind.value,
                    f"{fit.per_token_s * 1e6:.3g}",
                    f"{fit.per_square_s * 1e9:.3g}",
                    f"{fit.per_microbatch_s * 1e3:.3g}",
                    str(fit.num_rows),
                    _errors(fit.error),
                    _errors(fit.held_out),
                    "" if each.step_error is None else f"{each.step_error:.1%}",
                )
    return table


def link_table(links: "Iterable[LinkMeasurement]") -> "Table":
    """Return latencies and bandwidths."""
    table = _table(
        "links", ("between", "hardware", "latency us", "GB/s"), ("rows", "error: median, worst")
    )
    for each in links:
        table.add_row(
            "nodes" if each.crosses_nodes else "ranks of a node",
            " + ".join(each.ends),
            f"{each.fit.latency_s * 1e6:.3g}",
            f"{each.fit.bytes_per_s / 1e9:.3g}",
            str(each.fit.num_rows),
            _errors(each.fit.error),
        )
    return table


def _errors(errors: "Errors | None") -> str:
    return "" if errors is None else f"{errors.median:.1%}, {errors.worst:.1%}"


def _table(title: str, *columns: Iterable[str]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for some in columns:
        for column in some:
            table.add_column(column)
    return table
