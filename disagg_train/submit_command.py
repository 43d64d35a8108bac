"""The command ``disagg-train submit``."""

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from disagg_train.errors import ConfigError
from disagg_train.job_server import add_address, connect
from disagg_train.process_end import INTERRUPTED

if TYPE_CHECKING:
    from disagg_train.submission.request import JobRequest
    from disagg_train.submission.state import JobServer

_PACKAGES = ("disagg_train", "actors")


def add_submit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``submit`` to what every command on a job file has."""
    add_address(parser)
    parser.add_argument("--follow", action="store_true", help="follow it to its end (see `logs`)")
    parser.add_argument(
        "--submission-id",
        "--name",
        metavar="ID",
        help="what Ray is to call it; default: the job's name and the time",
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--resume",
        metavar="auto|FOLDER",
        default="auto",
        help="as for `train`; default: auto",
    )
    begin.add_argument(
        "--overwrite", action="store_true", help="begin anew and remove earlier checkpoints"
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="hand this shell's value of a variable to the job; no secrets, since Ray shows them; "
        "may be repeated",
    )
    parser.add_argument(
        "--working-dir",
        metavar="DIR",
        help="folder to upload; default: this one if the job names classes of your own in it, "
        "else the job file alone",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="what to leave out of the upload, on top of .gitignore and .rayignore, and written "
        "as there; may be repeated",
    )
    parser.add_argument(
        "--with-package",
        action="store_true",
        help="upload disagg_train itself too, in place of what the nodes have installed",
    )


def submit(arguments: argparse.Namespace) -> int:
    """Check a job, upload it with its code, start it, and follow it if that is asked for."""
    from disagg_train.config.load import read_content
    from disagg_train.submission.files import check_size, write_archive
    from disagg_train.submission.job_file import check_data_is_sent, job_to_send
    from disagg_train.submission.request import job_id_of, request_of, variables

    content = read_content(arguments.job, arguments.overrides)
    job = job_to_send(content)
    environment = variables(arguments.env, os.environ)
    job_id = job_id_of(job.name, arguments.submission_id)
    files = _files(arguments, content)
    check_data_is_sent(content, files)
    texts = dict(_texts(content))
    num_bytes = check_size(files)
    resume = None if arguments.overwrite else arguments.resume
    request = request_of(job, job_id, resume, environment)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "job.zip"
        write_archive(archive, files, texts.items())
        server = connect(arguments.address)
        _check_output_is_free(server, job.output)
        print(f"uploading the job file and {len(files)} files ({num_bytes / 1e6:.1f} MB)")
        _send(server, request, archive)
    return _tell(server, job_id, arguments.follow)


def _check_output_is_free(server: "JobServer", output: str) -> None:
    """Refuse a second run into the folder of one that goes on.

    Raises:
        ConfigError: it is taken.
    """
    from disagg_train.submission.request import OUTPUT

    for state in server.jobs():
        if not state.is_over and state.metadata.get(OUTPUT) == output and state.is_ours:
            raise ConfigError(
                f"job {state.job_id} is {state.status} and writes to the same output, {output}; "
                f"stop it first, or give another: --set output=..."
            )


def _send(server: "JobServer", request: "JobRequest", archive: Path) -> None:
    from disagg_train.submission.report import command

    try:
        server.submit(request, str(archive))
    except KeyboardInterrupt:
        asked = command("status", request.job_id, server.address)
        print(f"\ninterrupted while it was sent; whether it runs is told by: {asked}")
        raise SystemExit(INTERRUPTED) from None


def _tell(server: "JobServer", job_id: str, follows: bool) -> int:
    from rich.console import Console

    from disagg_train.following import follow
    from disagg_train.submission.report import command

    print(f"submitted {job_id}")
    if follows:
        print("following it; Ctrl-C ends that, not the job", flush=True)
        return follow(server, job_id, Console())
    print(f"  follow it:       {command('logs', job_id, server.address, '--follow')}")
    print(f"  look at it:      {command('status', job_id, server.address)}")
    print(f"  stop it, saving: {command('stop', job_id, server.address)}")
    return 0


def _files(arguments: argparse.Namespace, content: Mapping[str, Any]) -> dict[str, Path]:
    """Return what goes with the job, by its path in the driver's folder.

    Raises:
        ConfigError: a class of the user's is left out of it.
    """
    from disagg_train.submission.files import files_of
    from disagg_train.submission.job_file import own_classes

    folder = Path(arguments.working_dir or ".").expanduser().absolute()
    own = own_classes(content)
    here = {field: kind for field, kind in own.items() if _is_in(folder, kind)}
    for kind in sorted(set(own.values()) - set(here.values())):
        print(f"{kind} is not in {folder}, so the nodes must have it installed")
    files: dict[str, Path] = {}
    if arguments.working_dir or here:
        files = files_of(folder, arguments.exclude)
    for field, kind in here.items():
        module = kind.partition(":")[0].replace(".", "/")
        if not {f"{module}.py", f"{module}/__init__.py"} & files.keys():
            raise ConfigError(
                f"{field} is {kind!r}, and {module}.py is not among the files to upload from "
                f"{folder}; is it left out by --exclude, .gitignore or .rayignore?"
            )
    if arguments.with_package:
        files |= {name: path for package in _PACKAGES for name, path in _package_files(package)}
    return files


def _is_in(folder: Path, kind: str) -> bool:
    top = kind.partition(":")[0].partition(".")[0]
    return (folder / top).is_dir() or (folder / f"{top}.py").is_file()


def _package_files(package: str) -> Iterator[tuple[str, Path]]:
    from disagg_train.submission.files import files_of

    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    for name, path in files_of(Path(spec.origin).parent).items():
        yield f"{package}/{name}", path


def _texts(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and text of the job file and of the schedule that it names."""
    import yaml

    from disagg_train.submission.job_file import JOB_FILE, SCHEDULE_FILE, with_schedule

    sent, schedule = with_schedule(content, Path.cwd())
    yield JOB_FILE, yaml.safe_dump(sent, sort_keys=False)
    if schedule is not None:
        yield SCHEDULE_FILE, schedule.read_text()
