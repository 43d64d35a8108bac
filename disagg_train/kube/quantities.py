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


def share_on_cpus(group: str, ranks: int, ranks_per_node: int, tp: int = 1) -> PodShare:
    """Return the fewest pods that hold a group's ranks on CPUs.

    Args:
        group: its name.
        ranks: of it.
        ranks_per_node: at most.
        tp: ranks that are to share a pod, or to fill some where they do not fit into one.

    Raises:
        ConfigError: the ranks do not fill pods that are all alike.
    """
    each = min(ranks, ranks_per_node)
    fitting = _alike(ranks, tp)
    _check_alike(group, ranks, tp, each, f"cpu_ranks_per_node={ranks_per_node}", fitting)
    return PodShare(ranks // each, each, 0)


def share_on_gpus(
    group: str, ranks: int, gpus_per_rank: float, gpus_per_node: int, tp: int = 1
) -> PodShare:
    """Return the fewest pods that hold a group's ranks on GPUs.

    Args:
        group: its name.
        ranks: of it.
        gpus_per_rank: part of a GPU that each takes.
        gpus_per_node: at most.
        tp: ranks that are to share a pod, or to fill some where they do not fit into one.

    Raises:
        ConfigError: the ranks do not fill pods that are all alike.
    """
    per_gpu = floor(1 / gpus_per_rank + _ROUNDING)
    each = min(ranks, gpus_per_node * per_gpu)
    fitting = [count // per_gpu for count in _alike(ranks, tp) if count % per_gpu == 0]
    _check_alike(group, ranks, tp, each, f"gpus_per_node={gpus_per_node}", fitting)
    return PodShare(ranks // each, each, ceil(each / per_gpu))


def _alike(ranks: int, tp: int) -> list[int]:
    """Return how many ranks pods can hold that are all alike, with whole tp groups or even parts.

    A pod with room for one and a half of them would be filled by one.
    """
    return [count for count in divisors(ranks) if count % tp == 0 or tp % count == 0]


def _check_alike(
    group: str, ranks: int, tp: int, each: int, given: str, fitting: list[int]
) -> None:
    if each not in _alike(ranks, tp):
        field = given.partition("=")[0]
        ways = f"set kubernetes.groups.{group}.{field} to one of {fitting} or " if fitting else ""
        whole = f" with whole tp groups of {tp}" if tp > 1 else ""
        raise ConfigError(
            f"kubernetes: the {ranks} ranks of group {group!r} do not fill pods of {each}{whole} "
            f"({given}), and all pods of a group are alike; {ways}change groups.{group}.ranks"
        )


def times(memory: str, count: int) -> str:
    """Return an amount of memory so many times, in its own unit: ``times("16Gi", 8)``."""
    parts = re.fullmatch(r"(\d+)(\D*)", memory)
    assert parts is not None, "the job file's rules let no other amount pass"
    return f"{int(parts[1]) * count}{parts[2]}"
