"""How fast the edges of a job are: inside a node, or between nodes. Pure.

Ranks are numbered group after group, and nodes are filled in that order; a group on another kind
of machine begins a node of its own. A stage link is as fast as its slowest pair of ranks. Of a
boundary any rank may talk to any other, so it is inside a node only where all ranks of both
stages share one.
"""

from collections.abc import Sequence

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.planner.machine import Hardware, Machine
from disagg_train.schedule.graph import stage_name


def edge_bytes_per_s(job: JobConfig, hardware: Hardware) -> dict[str, float]:
    """Return what two ranks of each edge of the stage graph send each other, by the edge's name.

    Args:
        job: layouts of the modules.
        hardware: what its groups run on.
    """
    firsts = _first_seats(job, hardware)
    found: dict[str, float] = {}
    for name, module in job.modules.items():
        machine = hardware.of(module.group)
        stages = _Stages(job, name, firsts[module.group])
        for index in range(stages.count - 1):
            inside = _pairs_share_nodes(stages.seats(index), stages.seats(index + 1), machine)
            edge = f"{stages.name(index)}->{stages.name(index + 1)}"
            found[edge] = machine.node_bytes_per_s if inside else machine.link_bytes_per_s
        if name != LANGUAGE:
            language = _Stages(job, LANGUAGE, firsts[job.language.group])
            seats = [*stages.seats(-1), *language.seats(0)]
            ends = machine, hardware.of(job.language.group)
            found[f"{name}->{LANGUAGE}"] = _between(seats, *ends)
    return found


class _Stages:
    """Where the stages of a module sit.

    Args:
        job: the job.
        module: the module.
        first: seat of its first rank.
    """

    def __init__(self, job: JobConfig, module: str, first: int) -> None:
        self._module, self._first = module, first
        self._parallel = job.modules[module].parallel
        self.count = self._parallel.pp * self._parallel.vpp

    def name(self, index: int) -> str:
        return stage_name(self._module, index, self.count)

    def seats(self, index: int) -> range:
        """Return the seats of a stage's ranks; negative indices count from the end."""
        size = self._parallel.num_ranks // self._parallel.pp
        first = self._first + index % self._parallel.pp * size
        return range(first, first + size)


def _first_seats(job: JobConfig, hardware: Hardware) -> dict[str, int]:
    """Return the seat of every group's first rank; a node has ``ranks_per_node`` seats."""
    firsts: dict[str, int] = {}
    following, before = 0, None
    for name, group in job.groups.items():
        machine = hardware.of(name)
        if machine != before:
            following = -(-following // machine.ranks_per_node) * machine.ranks_per_node
        firsts[name], before = following, machine
        following += group.ranks
    return firsts


def _pairs_share_nodes(ours: range, theirs: range, machine: Machine) -> bool:
    size = machine.ranks_per_node
    if not machine.is_in_node(abs(theirs.start - ours.start) + 1):
        return False
    return all(a // size == b // size for a, b in zip(ours, theirs, strict=True))


def _between(seats: Sequence[int], source: Machine, destination: Machine) -> float:
    """Return the speed between two stages of modules: the slower of both machines'."""
    size = source.ranks_per_node
    if source == destination and source.knows_nodes and max(seats) // size == min(seats) // size:
        return source.node_bytes_per_s
    return min(source.link_bytes_per_s, destination.link_bytes_per_s)
