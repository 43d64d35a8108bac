"""The command ``disagg-train report``."""

import argparse
import webbrowser
from pathlib import Path


def add_report_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``report``."""
    command.add_argument("folder", metavar="RUN", help="output folder of a run, also a running one")
    command.add_argument(
        "--out", metavar="FILE", help="page to write; default: report.html in the run's folder"
    )
    command.add_argument("--open", action="store_true", help="show it in the browser")
    command.set_defaults(run=report)


def report(arguments: argparse.Namespace) -> int:
    """Write the page, and say where it is."""
    from disagg_train.report.page import write_report

    out = Path(arguments.out) if arguments.out else None
    path = write_report(Path(arguments.folder), out)
    print(f"written to {path}")
    if arguments.open:
        webbrowser.open(path.absolute().as_uri())
    return 0
