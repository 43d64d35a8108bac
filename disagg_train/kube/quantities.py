"""Amounts as Kubernetes writes them, and how a group's ranks are dealt out to pods."""

import re
from dataclasses import dataclass
from math import ceil, floor

from disagg_train.config.base import divisors
from disagg_train.errors import ConfigError

_ROUNDING = 1e-6


@dataclass(frozen=True)
class PodShare:
    """How many pods a group has, and what each of them holds.

    Args:
        pods: all alike.
        ranks: in each.
        gpus: of each; 0 on CPUs.
    """

    pods: int
    ranks: int
    gpus: int


def share_on_cpus(group: str, ranks: int, ranks_per_node: int) -> PodShare:
    """Return the fewest pods that hold a group's ranks on CPUs.

    Raises:
        ConfigError: the ranks do not fill pods that are all alike.
    """
    each = min(ranks, ranks_per_node)
    _check_alike(group, ranks, each, f"cpu_ranks_per_node={ranks_per_node}", divisors(ranks))
    return PodShare(ranks // each, each, 0)


def share_on_gpus(group: str, ranks: int, gpus_per_rank: float, gpus_per_node: int) -> PodShare:
    """Return the fewest pods that hold a group's ranks on GPUs.

    Raises:
        ConfigError: the ranks do not fill pods that are all alike.
    """
    per_gpu = floor(1 / gpus_per_rank + _ROUNDING)
    each = min(ranks, gpus_per_node * per_gpu)
    fitting = [count // per_gpu for count in divisors(ranks) if count % per_gpu == 0]
    _check_alike(group, ranks, each, f"gpus_per_node={gpus_per_node}", fitting)
    return PodShare(ranks // each, each, ceil(each / per_gpu))


def _check_alike(group: str, ranks: int, each: int, given: str, fitting: list[int]) -> None:
    if ranks % each:
        field = given.partition("=")[0]
        ways = f"set kubernetes.groups.{group}.{field} to one of {fitting} or " if fitting else ""
        raise ConfigError(
            f"kubernetes: the {ranks} ranks of group {group!r} do not fill pods of {each} "
            f"({given}), and all pods of a group are alike; {ways}change groups.{group}.ranks"
        )


def times(memory: str, count: int) -> str:
    """Return an amount of memory so many times, in its own unit: ``times("16Gi", 8)``."""
    parts = re.fullmatch(r"(\d+)(\D*)", memory)
    assert parts is not None, "the job file's rules let no other amount pass"
    return f"{int(parts[1]) * count}{parts[2]}"
