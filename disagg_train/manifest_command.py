"""The command ``disagg-train manifest``."""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from disagg_train.kube.pods import Body


def add_manifest_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of ``manifest`` to what every command on a job file has."""
    command.add_argument(
        "--kind",
        type=str.lower,
        choices=["rayjob", "raycluster"],
        default="rayjob",
        help="rayjob (default): a Ray cluster that runs the job and ends with it; raycluster: "
        "one that stays",
    )
    command.add_argument(
        "--queue", choices=["kueue", "volcano", "kai"], help="keeper of the queue to wait in"
    )
    command.add_argument("--queue-name", metavar="NAME", help="queue to wait in")
    command.add_argument("--image", metavar="IMAGE", help="image of all pods")
    command.add_argument("--namespace", metavar="NAME", help="namespace of all objects")


def manifest(arguments: argparse.Namespace) -> int:
    """Print a job as Kubernetes objects; nothing that the job names is opened."""
    import yaml

    from disagg_train.config.load import read_content
    from disagg_train.config.outline import outline_of
    from disagg_train.kube.manifest import driver_content
    from disagg_train.kube.manifest import manifest as objects

    content = read_content(arguments.job, [*arguments.overrides, *_options(arguments)])
    job = outline_of(content)
    job_file = yaml.safe_dump(driver_content(job, content), sort_keys=False)
    print(_as_yaml(objects(job, arguments.kind, job_file)), end="")
    return 0


def _options(arguments: argparse.Namespace) -> Iterator[str]:
    """Return the options that stand for fields of the job, as overrides."""
    fields = {
        "queue.kind": arguments.queue,
        "queue.name": arguments.queue_name,
        "image": arguments.image,
        "namespace": arguments.namespace,
    }
    for field, value in fields.items():
        if value is not None:
            yield f"kubernetes.{field}={json.dumps(value)}"


def _as_yaml(objects: "list[Body]") -> str:
    """Return the objects as a person would write them: no references, scripts as blocks."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=100)
