"""Plans are committed once every rank has decoded their samples and found none bad.

Under ``data.on_bad_sample: skip`` the driver asks all ranks to load a coming step's samples
while another step runs. What they report is taken out and the plan is made again, as if those
samples had never been in the data set. Nothing runs a plan that is not committed.
"""

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from disagg_train.config.secret_values import masked
from disagg_train.driver.ports import Group
from disagg_train.driver.signals import Deliver
from disagg_train.driver.waiting import await_all
from disagg_train.errors import DataError
from disagg_train.metrics.events import event
from disagg_train.metrics.records import BadSample
from disagg_train.metrics.sinks import JsonLines
from disagg_train.planner.step_plan import StepPlan


@runtime_checkable
class MendablePlans(Protocol):
    """Plans one after the other, of which the newest can be made again."""

    def without(self, keys: Collection[int]) -> StepPlan:
        """Make the newest plan again as if some samples had never been there."""


class BadSamples:
    """The samples that a run has taken out, each once, up to a limit.

    Args:
        limit: how many may be bad.
        found: those that the data set's index knows of.

    Raises:
        DataError: there are more.
    """

    def __init__(self, limit: int, found: Sequence[BadSample] = ()) -> None:
        self._limit, self._all = limit, dict[int, BadSample]()
        self._new: list[BadSample] = []
        self.add(found)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._all)

    def __iter__(self) -> Iterator[BadSample]:
        return iter(self._all.values())

    def __contains__(self, key: int) -> bool:
        return key in self._all

    def add(self, found: Sequence[BadSample]) -> None:
        """Count samples that are taken out.

        Raises:
            DataError: too many are bad.
        """
        for bad in found:
            if bad.key not in self._all:
                self._all[bad.key] = replace(bad, reason=masked(bad.reason))
                self._new.append(self._all[bad.key])
        if self.count > self._limit:
            last = next(reversed(self._all.values()))
            raise DataError(
                f"{self.count} samples are bad, more than data.max_bad_samples={self._limit}; "
                f"the last one: {last.reason}"
            )

    def take_new(self) -> tuple[BadSample, ...]:
        """Return those that were added since the last call."""
        new, self._new = tuple(self._new), []
        return new


@contextlib.contextmanager
def listed_in(path: Path, bad: BadSamples) -> Iterator[None]:
    """Write what was taken out at the end, also where too many of them are the end."""
    try:
        yield
    finally:
        if bad.count:
            with JsonLines(path) as listed:
                for each in bad:
                    listed.write(asdict(each))


class Committer:
    """Has every rank load a plan's samples, and mends the plan until all are good.

    Args:
        groups: every group of the job.
        bad: what is taken out.
        deadline_s: for the loading of one plan.
        runs_ahead: whether encoders run ahead into the next step; its plan must then be
            committed before a step begins, and one more step's samples wait on the ranks.
    """

    def __init__(
        self, groups: Sequence[Group], bad: BadSamples, deadline_s: float, runs_ahead: bool = False
    ) -> None:
        self._groups, self.bad, self._deadline_s = groups, bad, deadline_s
        self.depth = 2 if runs_ahead else 1

    def commit(self, plans: Iterator[StepPlan], deliver: Deliver = lambda: None) -> StepPlan | None:
        """Return the next plan, mended; None past the end.

        Args:
            plans: of which the newest can be made again.
            deliver: called between waits, for signals that are held back.

        Raises:
            DataError: too many samples are bad, or none is left.
            RankError: a rank died, hung or raised.
        """
        plan = next(plans, None)
        while plan is not None and (found := self._probe(plan, deliver)):
            for bad in found:
                said = f"sample {bad.key} is taken out: {bad.reason}"
                event(said, plan.step, level=logging.WARNING)
            self.bad.add(found)
            assert isinstance(plans, MendablePlans)
            plan = plans.without({bad.key for bad in found})
        return plan

    def _probe(self, plan: StepPlan, deliver: Deliver) -> list[BadSample]:
        """Return the plan's bad samples, each once; several ranks may have seen the same."""
        probing = [group.probe(plan) for group in self._groups]
        await_all(probing, self._deadline_s, f"loading of the samples of step {plan.step}", deliver)
        of_key = {b.key: b for future in probing for found in future.result() for b in found}
        return [of_key[key] for key in sorted(of_key)]
