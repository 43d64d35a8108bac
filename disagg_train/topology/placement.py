"""Which global ranks a group and a module own."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Placement:
    """Groups of ranks, numbered one after the other in the order of the job file.

    Args:
        group_ranks: number of ranks of each group.
        module_group: the group that hosts each module.
    """

    group_ranks: Mapping[str, int]
    module_group: Mapping[str, str]

    @property
    def world_size(self) -> int:
        """Number of ranks of the job."""
        return sum(self.group_ranks.values())

    def places(self, group: str) -> tuple[int, ...]:
        """Return the global ranks of ``group``."""
        sizes = list(self.group_ranks.values())
        firsts = dict(zip(self.group_ranks, accumulate(sizes, initial=0), strict=False))
        return tuple(range(firsts[group], firsts[group] + self.group_ranks[group]))

    def module_places(self, module: str) -> tuple[int, ...]:
        """Return the global ranks that hold ``module``; its rank i is the i-th of them."""
        return self.places(self.module_group[module])

    def modules_on(self, group: str) -> tuple[str, ...]:
        """Return the modules of ``group``, in the order of the job file."""
        return tuple(m for m, host in self.module_group.items() if host == group)

    def colocated(self, first: str, second: str) -> bool:
        """Return whether two modules share their ranks."""
        return self.module_group[first] == self.module_group[second]
