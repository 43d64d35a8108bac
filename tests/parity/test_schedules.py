"""Every schedule trains the same model as one process: ten steps, by ``verify``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from actors.pool import ActorPool
from disagg_train.bench.torchrun import job_plans
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver import loop, step_planner
from disagg_train.driver.schedules import job_schedules
from disagg_train.errors import DisaggTrainError
from disagg_train.planner.deferral import reach_of
from disagg_train.planner.in_order import split_evenly
from disagg_train.planner.step_plan import Assignment, SampleSize
from disagg_train.schedule.file import save_schedule
from disagg_train.schedule.graph import Reach
from disagg_train.trainer import Trainer
from tests.parity.jobs import Degrees, small_job

pytestmark = pytest.mark.ray

_STEPS = 10
_TIED = "modules.language.model.tie_embeddings=true"
_FROZEN_ENCODER = "modules.vision.freeze=true"
_FROZEN_LLM = "modules.language.freeze=true"


@dataclass(frozen=True)
class Case:
    """A job whose schedule is under test."""

    name: str
    vision: Degrees
    language: Degrees
    more: dict[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    colocated: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def job(self) -> JobConfig:
        job = small_job(self.vision, self.language, self.colocated, **self.more)
        return load_job(job, list(self.overrides))


_PP2, _VPP2 = {"pp": 2}, {"pp": 2, "vpp": 2}
_FOUR = {"num_layers": 4, "microbatches": 4}
_ZERO_BUBBLE, _GPIPE = {"schedule": "zero_bubble"}, {"schedule": "gpipe"}

_CASES = [
    Case("pp2 to pp2", _PP2, _PP2),
    Case("pp1 to pp3", {}, {"pp": 3}, {"num_layers": 3, "microbatches": 4}),
    Case("interleaved", {"dp": 2}, _VPP2, _FOUR),
    Case("zero-bubble", {"dp": 2}, {"pp": 2}, _ZERO_BUBBLE),
    Case("zero-bubble with tp and sp", _PP2, {"pp": 2, "tp": 2, "sp": True}, _ZERO_BUBBLE),
    Case("gpipe", {"dp": 2}, _PP2, _GPIPE),
    Case("colocated, window of 2", {"dp": 2}, _PP2, {"window": 2}, colocated=True),
    Case("running ahead", {"dp": 2}, _PP2, overrides=[_FROZEN_ENCODER]),
    Case(
        "frozen LLM above a projector",
        _PP2,
        _PP2,
        overrides=[_FROZEN_ENCODER, "modules.vision.projector.freeze=false", _FROZEN_LLM],
    ),
    Case("tied embeddings", {"dp": 2}, {"pp": 2, "tp": 2}, overrides=[_TIED]),
    Case(
        "recomputing layers",
        {"tp": 2},
        {"pp": 2, "tp": 2, "sp": True},
        _ZERO_BUBBLE,
        overrides=["modules.language.recompute=full", "modules.vision.recompute=selective"],
    ),
]
_MORE_CASES = [
    Case("interleaved with tp and sp", _PP2, _VPP2 | {"tp": 2, "sp": True}, _FOUR),
    Case("interleaved colocated", _PP2, _VPP2, _FOUR | {"window": 2}, colocated=True),
    Case("zero-bubble colocated", {"dp": 2}, _PP2, _ZERO_BUBBLE, colocated=True),
    Case(
        "zero-bubble of experts", {}, {"pp": 2, "ep": 2, "dp": 2}, _ZERO_BUBBLE | {"num_experts": 4}
    ),
    Case("colocated, window of 1", {"dp": 2}, _PP2, {"window": 1}, colocated=True),
    Case("colocated, one window", {"dp": 2}, _PP2, colocated=True),
    Case("two encoders", {"dp": 2}, _PP2, {"audio": _PP2}, colocated=True),
    Case("frozen LLM, zero-bubble", {}, _PP2, _ZERO_BUBBLE, overrides=[_FROZEN_LLM]),
    Case("tied embeddings, interleaved", {"dp": 2}, _VPP2 | {"dp": 2}, _FOUR, overrides=[_TIED]),
]


_SP_PP2 = {"pp": 2, "tp": 2, "sp": True}
_EIGHT_RANKS = [
    Case("interleaved, tp and sp on both sides", {"pp": 2, "tp": 2}, _SP_PP2 | {"vpp": 2}, _FOUR),
    Case(
        "interleaved, four stages each", {"dp": 3}, {"pp": 2, "vpp": 4}, _FOUR | {"num_layers": 8}
    ),
    Case("zero-bubble, pp4", {"pp": 2, "dp": 2}, {"pp": 4}, _FOUR | _ZERO_BUBBLE),
    Case(
        "zero-bubble, colocated, tied",
        {"dp": 8},
        {"pp": 2, "tp": 2, "cp": 2, "sp": True},
        {"window": 2, **_ZERO_BUBBLE},
        overrides=[_TIED],
        colocated=True,
    ),
    Case(
        "interleaved, colocated",
        {"pp": 2, "dp": 4},
        {"pp": 4, "vpp": 2, "dp": 2},
        {"num_layers": 8, "microbatches": 4},
        colocated=True,
    ),
]


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_a_schedule_trains_the_same_model(pool: ActorPool, case: Case) -> None:
    parity = Trainer(case.job).verify(_STEPS, pool)
    assert parity.ok, parity


@pytest.mark.slow
@pytest.mark.parametrize("case", _MORE_CASES + _EIGHT_RANKS, ids=str)
def test_more_schedules_on_up_to_eight_ranks_train_the_same_model(
    pool: ActorPool, case: Case
) -> None:
    parity = Trainer(case.job).verify(_STEPS, pool)
    assert parity.ok, parity


def test_a_frozen_encoder_computes_the_next_steps_first_rows_once(pool: ActorPool) -> None:
    ahead = next(case.job for case in _CASES if case.name == "running ahead")
    job = load_job(ahead, ["data.options.text_only=0"])
    steps = list(islice(job_plans(job), _STEPS))
    with pool.session(job) as session:
        reports = [found for _, found in loop.train(session.groups, steps, job.deadlines.step_s)]
    after_the_first = [
        {span.name: span.duration_s for span in step[0].spans} for step in reports[1:]
    ]

    def least_s(microbatch: int) -> float:
        """A busy machine delays single ops, not one op of every step."""
        return min(step[f"forward vision {microbatch}"] for step in after_the_first)

    assert max(least_s(0), least_s(1)) < 0.2 * least_s(2), "two were run ahead, the third was not"


def putting_off(job: JobConfig, samples: Sequence[SampleSize]) -> dict[str, Assignment]:
    """Assign samples in order, but let the LLM put every second or third one off, if it may."""
    return {name: _put_off(job, name, len(samples)) for name in job.modules}


def _put_off(job: JobConfig, module: str, num_samples: int) -> Assignment:
    reach = reach_of(job, "vision") if module == LANGUAGE else Reach()
    dp, microbatches = job.modules[module].parallel.dp, job.train.microbatches
    held: list[list[int]] = [[] for _ in range(microbatches)]
    for sample in range(num_samples):
        may = reach.consumers(sample * microbatches // num_samples)
        held[min(may[sample % len(may)], microbatches - 1)].append(sample)
    return tuple(split_evenly(samples, dp) for samples in held)


def several_at_once(job: JobConfig, samples: Sequence[SampleSize]) -> dict[str, Assignment]:
    """Assign samples in order, but let encoders take them in the first microbatch that they may."""
    found = {}
    for name, module in job.modules.items():
        reach = Reach() if name == LANGUAGE else reach_of(job, name)
        held: list[list[int]] = [[] for _ in range(job.train.microbatches)]
        for sample in range(len(samples)):
            microbatch = sample * len(held) // len(samples)
            held[reach.drawn_on(microbatch)[0]].append(sample)
        found[name] = tuple(split_evenly(samples, module.parallel.dp) for samples in held)
    return found


_DEFERRAL = {"deferral_span": 2, "microbatches": 5, "balance": "none"}


@pytest.mark.parametrize(
    "case",
    [
        Case("encoder stages", {"pp": 2, "tp": 2}, {"dp": 2}, _DEFERRAL),
        Case("colocated", {"dp": 2}, _PP2, _DEFERRAL | {"window": 2}, colocated=True),
        pytest.param(
            Case("zero-bubble, two encoders", _PP2, _PP2, _DEFERRAL | _ZERO_BUBBLE | {"audio": {}}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_putting_samples_off_trains_the_same_model(
    pool: ActorPool, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_planner, "start_assignment", putting_off)
    parity = Trainer(case.job).verify(_STEPS, pool)
    assert parity.ok, parity


def test_taking_several_microbatches_at_once_trains_the_same_model(
    pool: ActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"deferral_span": 2, "microbatches": 8, "window": 3, "balance": "none"}
    job = Case("colocated", {"dp": 4}, {"tp": 2, "pp": 2}, train, colocated=True).job
    monkeypatch.setattr(step_planner, "start_assignment", several_at_once)
    parity = Trainer(job).verify(_STEPS, pool)
    assert parity.ok, parity


def test_a_sample_put_off_for_too_long_is_refused(
    pool: ActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Case("disjoint", {"dp": 2}, _PP2, {"microbatches": 5, "balance": "none"}).job
    further = load_job(job, ["train.deferral_span=1"])
    monkeypatch.setattr(
        step_planner, "start_assignment", lambda _, samples: putting_off(further, samples)
    )
    with pytest.raises(DisaggTrainError, match="sample .* is encoded by 'vision' in microbatch"):
        Trainer(job).verify(1, pool)


def test_a_schedule_of_ones_own_trains_the_same_model(pool: ActorPool, tmp_path: Path) -> None:
    path = tmp_path / "schedule.yaml"
    job = Case("gpipe", {"dp": 2}, _PP2, _GPIPE).job
    save_schedule(job_schedules(job)[0], path)
    own = load_job(job, [f"train.schedule={path}"])
    parity = Trainer(own).verify(_STEPS, pool)
    assert parity.ok, parity
