"""What a job's modules cost by measurements: ``a * tokens + b * squares + c``, fitted.

A module that was measured in the degrees of the job costs what was fitted. In other degrees it
costs what was measured in the nearest ones, times the ratio of what the analytic model says of
both; that model first gets the speed that was measured there. What comes once a step is scaled in
the same way over dp, activations by what the engine counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, log2
from pathlib import Path
from statistics import median
from typing import Self

from disagg_train.config.job import JobConfig
from disagg_train.errors import ConfigError
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.machine import Machine
from disagg_train.planner.measurements import (
    LinkMeasurement,
    ModuleMeasurement,
    degrees_of,
    describe_degrees,
    read_links,
    read_modules,
    signature,
)
from disagg_train.planner.sample_costs import ModuleCost, PassCost, StageCost
from disagg_train.planner.step_costs import JobCosts
from disagg_train.schedule.ops import OpKind

_HALVES = (OpKind.BACKWARD_INPUT, OpKind.BACKWARD_WEIGHT)
_AXES = ("tp", "cp", "pp", "vpp", "ep")


class Profile:
    """Measured costs of modules.

    Args:
        modules: measured modules, of any jobs and hardware.
        links: measured links.
    """

    def __init__(
        self, modules: Sequence[ModuleMeasurement], links: Sequence[LinkMeasurement] = ()
    ) -> None:
        self.modules, self.links = tuple(modules), tuple(links)
        self._machine = _with_links(Machine(), links)
        self._known: dict[tuple[str, ...], ModuleCost] = {}

    @classmethod
    def read(cls, folder: Path, hardware: str = "") -> Self:
        """Return the profile that a folder holds.

        Args:
            folder: of measurements.
            hardware: part of the name of what was measured; all where not given.

        Raises:
            ConfigError: nothing was measured there.
            DataError: a file is no measurement.
        """
        folder, wanted = folder.expanduser(), hardware.lower()
        found = read_modules(folder)
        modules = [each for each in found if wanted in each.hardware.lower()]
        if not modules:
            known = sorted({each.hardware for each in found})
            of_hardware = f" of {hardware!r}, but of {known}" if known else ""
            raise ConfigError(
                f"{folder} has no measurements{of_hardware}; run disagg-train profile JOB first"
            )
        links = [
            link for link in read_links(folder) if any(wanted in end.lower() for end in link.ends)
        ]
        return cls(modules, links)

    def costs(self, job: JobConfig) -> JobCosts:
        """Return what a job's modules cost.

        Raises:
            ConfigError: a module was never measured, or it is not clear on which hardware.
        """
        modules = {name: self._cost(job, name) for name in job.modules}
        return replace(costs_by_size(job, self._machine), modules=modules)

    def notes(self, job: JobConfig) -> list[str]:
        """Return which modules of a job cost what other degrees were measured to, for people.

        Raises:
            ConfigError: a module was never measured, or it is not clear on which hardware.
        """
        notes = []
        for name, module in job.modules.items():
            measured = self.nearest(job, name)
            wanted = degrees_of(module.parallel, module.recompute)
            if (found := _degrees(measured)) != wanted:
                notes.append(
                    f"modules.{name}: {describe_degrees(wanted)} was not measured; scaled from "
                    f"{describe_degrees(found)} by the analytic model"
                )
        return notes

    def nearest(self, job: JobConfig, name: str) -> ModuleMeasurement:
        """Return the measurement of a module in the degrees that are nearest to the job's.

        Raises:
            ConfigError: it was never measured, or it is not clear on which hardware.
        """
        signed = signature(job, name)
        same = [each for each in self.modules if each.signature == signed]
        if not same:
            raise ConfigError(
                f"modules.{name}: this module was not measured; run disagg-train profile JOB, or "
                f"plan without --profile"
            )
        accelerator = job.groups[job.modules[name].group].accelerator
        return min(_of_hardware(same, name, accelerator), key=lambda e: _distance(job, name, e))

    def _cost(self, job: JobConfig, name: str) -> ModuleCost:
        module = job.modules[name]
        accelerator = job.groups[module.group].accelerator or ""
        width = str(job.language.model.hidden_size)
        key = name, module.model_dump_json(), accelerator, job.train.precision, width
        if key not in self._known:
            self._known[key] = self._cost_by(self.nearest(job, name), job, name)
        return self._known[key]

    def _cost_by(self, measured: ModuleMeasurement, job: JobConfig, name: str) -> ModuleCost:
        there = _as_measured(job, name, measured)
        machine = _calibrated(self._machine, there, name, measured)
        scale = _Scale(measured, _computed(there, name, machine), _computed(job, name, machine))
        module = job.modules[name]
        if _degrees(measured) == degrees_of(module.parallel, module.recompute):
            return scale.same()
        return scale.other()


@dataclass(frozen=True)
class _Scale:
    """Takes a measured module to the degrees of a job.

    Args:
        measured: the module in some degrees.
        reference: what the analytic model says of these.
        computed: what it says of the job's.
    """

    measured: ModuleMeasurement
    reference: ModuleCost
    computed: ModuleCost

    def same(self) -> ModuleCost:
        """Return the costs in the measured degrees; dp may be another one."""
        stages = []
        for fit, before, now in zip(
            self.measured.stages, self.reference.stages, self.computed.stages, strict=True
        ):
            passes = {kind: each.cost for kind, each in fit.passes.items()}
            once_s = {
                kind: _once_s(fit.once_s.get(kind), before.once_s[kind], value)
                for kind, value in now.once_s.items()
            }
            stages.append(self._stage(passes, now, once_s))
        return ModuleCost(tuple(stages))

    def other(self) -> ModuleCost:
        """Return the costs in other degrees: stages get their computed part of the whole."""
        whole = _whole_passes(self.measured)
        stages = []
        for now in self.computed.stages:
            passes = {
                kind: self._scaled(cost, now.passes[kind], _whole(self.reference, kind))
                for kind, cost in whole.items()
            }
            once_s = {kind: self._once_part_s(kind, value) for kind, value in now.once_s.items()}
            stages.append(self._stage(passes, now, once_s))
        return ModuleCost(tuple(stages))

    def _stage(
        self, passes: Mapping[OpKind, PassCost], now: StageCost, once_s: dict[OpKind, float]
    ) -> StageCost:
        ratio = self.measured.activation_ratio
        return StageCost(
            self._all_passes(passes, now),
            now.bytes_per_token * (1.0 if ratio is None else ratio),
            once_s,
        )

    def _all_passes(
        self, measured: Mapping[OpKind, PassCost], now: StageCost
    ) -> dict[OpKind, PassCost]:
        """Add what the measured schedule did not have: a backward's halves, or their sum."""
        passes = dict(measured)
        if (backward := passes.get(OpKind.BACKWARD)) is not None:
            for half in _HALVES:
                part = self._scaled(backward, now.passes[half], now.passes[OpKind.BACKWARD])
                passes.setdefault(half, part)
            return passes
        for half in _HALVES:
            passes.setdefault(half, PassCost(0.0))
        passes[OpKind.BACKWARD] = passes[_HALVES[0]] + passes[_HALVES[1]]
        return passes

    def _scaled(self, cost: PassCost, now: PassCost, before: PassCost) -> PassCost:
        """Return a measured cost times what is computed now over what was computed before.

        Each coefficient has its own ratio; one that nothing was computed for takes that of the
        median microbatch.
        """
        before_s = self._at(before)
        usual = self._at(now) / before_s if before_s else 0.0

        def ratio(now_s: float, before_s: float) -> float:
            return now_s / before_s if before_s else usual

        return PassCost(
            cost.per_token_s * ratio(now.per_token_s, before.per_token_s),
            cost.per_square_s * ratio(now.per_square_s, before.per_square_s),
            cost.per_microbatch_s * ratio(now.per_microbatch_s, before.per_microbatch_s),
        )

    def _once_part_s(self, kind: OpKind, computed_s: float) -> float:
        """Return a stage's seconds of what comes once a step; computed where nothing else is."""
        found = [stage.once_s.get(kind, 0.0) for stage in self.measured.stages]
        before_s = sum(stage.once_s[kind] for stage in self.reference.stages)
        if before_s and any(found):
            return computed_s * sum(found) / before_s
        return computed_s + sum(found) / len(self.computed.stages)

    def _at(self, cost: PassCost) -> float:
        return _seconds(cost, self.measured)


def _seconds(cost: PassCost, measured: ModuleMeasurement) -> float:
    """Return the seconds of the median microbatch."""
    by_size = cost.per_token_s * measured.tokens + cost.per_square_s * measured.squares
    return by_size + cost.per_microbatch_s


def _once_s(measured_s: float | None, before_s: float, computed_s: float) -> float:
    """Return the seconds of an op with another dp: in proportion, else what comes on top."""
    if measured_s is None:
        return computed_s
    return measured_s * computed_s / before_s if before_s else measured_s + computed_s


def _whole_passes(measured: ModuleMeasurement) -> dict[OpKind, PassCost]:
    """Return what the passes of all stages take together."""
    kinds = dict.fromkeys(kind for stage in measured.stages for kind in stage.passes)
    return {
        kind: _sum(stage.passes[kind].cost for stage in measured.stages if kind in stage.passes)
        for kind in kinds
    }


def _whole(module: ModuleCost, kind: OpKind) -> PassCost:
    return _sum(stage.passes[kind] for stage in module.stages)


def _sum(costs: Iterable[PassCost]) -> PassCost:
    return sum(costs, PassCost(0.0))


def _computed(job: JobConfig, name: str, machine: Machine) -> ModuleCost:
    return costs_by_size(job, machine).modules[name]


def _as_measured(job: JobConfig, name: str, measured: ModuleMeasurement) -> JobConfig:
    """Return a job with a module cut as it was measured; unchecked, for its sizes alone."""
    changes = {"parallel": measured.parallel, "recompute": measured.recompute}
    module = job.modules[name].model_copy(update=changes)
    ranks = {"ranks": measured.parallel.num_ranks}
    group = job.groups[module.group].model_copy(update=ranks)
    return job.model_copy(
        update={
            "modules": {**job.modules, name: module},
            "groups": {**job.groups, module.group: group},
        }
    )


def _calibrated(
    machine: Machine, there: JobConfig, name: str, measured: ModuleMeasurement
) -> Machine:
    """Return a machine as fast at a module's forwards and updates as was measured.

    Args:
        machine: with the links that were measured.
        there: the job with the module as it was measured.
        name: of the module.
        measured: the module.
    """
    computed = _computed(there, name, machine)
    forward_s = _seconds(_whole(computed, OpKind.FORWARD), measured)
    measured_s = _seconds(_whole_passes(measured)[OpKind.FORWARD], measured)
    sent_s = _update_s(_computed(there, name, replace(machine, memory_bytes_per_s=inf)))
    memory_s, measured_memory_s = _update_s(computed) - sent_s, _update_s(measured) - sent_s
    return replace(
        machine,
        flops_per_s=machine.flops_per_s * _quicker(forward_s, measured_s),
        memory_bytes_per_s=machine.memory_bytes_per_s * _quicker(memory_s, measured_memory_s),
    )


def _update_s(module: ModuleCost | ModuleMeasurement) -> float:
    return sum(stage.once_s.get(OpKind.OPTIMIZER_STEP, 0.0) for stage in module.stages)


def _quicker(computed_s: float, measured_s: float) -> float:
    return computed_s / measured_s if computed_s > 0.0 and measured_s > 0.0 else 1.0


def _with_links(machine: Machine, links: Iterable[LinkMeasurement]) -> Machine:
    """Return a machine with measured links; one node's stand in where none crossed nodes."""
    of_kind: dict[bool, list[LinkMeasurement]] = {False: [], True: []}
    for link in links:
        of_kind[link.crosses_nodes].append(link)
    if crossing := of_kind[True]:
        ranks = max(link.ranks_per_node for link in crossing)
        machine = replace(machine, ranks_per_node=ranks)
    if between := crossing or of_kind[False]:
        machine = replace(
            machine,
            latency_s=median(link.fit.latency_s for link in between),
            link_bytes_per_s=median(link.fit.bytes_per_s for link in between),
        )
    if inside := of_kind[False]:
        bytes_per_s = median(link.fit.bytes_per_s for link in inside)
        machine = replace(machine, node_bytes_per_s=bytes_per_s)
    return machine


def _degrees(measured: ModuleMeasurement) -> dict[str, object]:
    return degrees_of(measured.parallel, measured.recompute)


def _distance(job: JobConfig, name: str, measured: ModuleMeasurement) -> tuple[float, int]:
    """Return how far degrees are apart: doublings of each; the same dp goes before others."""
    wanted, found = job.modules[name], measured.parallel
    doublings = sum(
        abs(log2(getattr(wanted.parallel, axis) / getattr(found, axis))) for axis in _AXES
    )
    doublings += (wanted.parallel.sp != found.sp) / 2
    doublings += wanted.recompute != measured.recompute
    return doublings, abs(wanted.parallel.dp - found.dp)


def _of_hardware(
    measured: Sequence[ModuleMeasurement], name: str, accelerator: str | None
) -> list[ModuleMeasurement]:
    """Return what was measured on a group's accelerator, or on the only hardware there is."""
    known = sorted({each.hardware for each in measured})
    if accelerator is None:
        if len(known) > 1:
            raise ConfigError(
                f"modules.{name} was measured on {known}; say which its group runs on: "
                f"groups.NAME.accelerator"
            )
        return list(measured)
    wanted = accelerator.lower()
    found = [each for each in measured if wanted in each.hardware.lower()]
    if not found:
        raise ConfigError(
            f"modules.{name} was measured on {known}, not on {accelerator!r}; run disagg-train "
            f"profile JOB there, or plan without --profile"
        )
    return found
