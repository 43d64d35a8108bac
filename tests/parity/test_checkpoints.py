"""A checkpoint holds all that training depends on, and any layout goes on from it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from actors.pool import ActorPool
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.metrics.records import SnapshotOrder
from tests.parity import saving
from tests.parity.jobs import Degrees, small_job

pytestmark = pytest.mark.ray

_BEFORE, _AFTER = 2, 3
_SP = {"tp": 2, "sp": True}


def _slow_but(quick: bool) -> tuple[pytest.MarkDecorator, ...]:
    return () if quick else (pytest.mark.slow,)


@dataclass(frozen=True)
class Layout:
    """Where the two modules are, and how each is cut."""

    vision: Degrees
    language: Degrees
    colocated: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def job(self, *overrides: str) -> JobConfig:
        """Return the same job, whatever the layout: four layers each, experts in the LLM."""
        options: dict[str, Any] = {"num_layers": 4, "num_experts": 4, "microbatches": 4}
        job = small_job(self.vision, self.language, colocated=self.colocated, **options | self.more)
        return load_job(job, list(overrides))


_LAYOUTS = {
    "dp2, tp2 with sp": Layout({"dp": 2}, _SP),
    "tp2, pp2": Layout({"tp": 2}, {"pp": 2}),
    "cp2, cp2 and dp2": Layout({"cp": 2}, {"cp": 2, "dp": 2}),
    "pp2, interleaved": Layout({"pp": 2}, {"pp": 2, "vpp": 2}),
    "dp3, ep2": Layout({"dp": 3}, {"ep": 2, "dp": 2}),
    "colocated dp4, tp2 and dp2": Layout(
        {"dp": 4}, {"tp": 2, "sp": True, "dp": 2}, colocated=True, more={"window": 2}
    ),
}
_QUICK_PAIR = "dp2, tp2 with sp", "colocated dp4, tp2 and dp2"
_PAIRS = [
    pytest.param(one, other, id=f"{one} to {other}", marks=_slow_but((one, other) == _QUICK_PAIR))
    for one in _LAYOUTS
    for other in _LAYOUTS
    if one != other
]
_DENSE = {"num_experts": None}
_LORA = "lora={rank: 4, alpha: 8.0}"


@dataclass(frozen=True)
class Case:
    """A job whose state has something special about it."""

    layout: Layout
    overrides: tuple[str, ...] = ()


_EXACT = {
    "experts, interleaved": Case(Layout({"dp": 2}, {"pp": 2, "vpp": 2})),
    "bf16": Case(Layout({"dp": 2}, _SP), ("train.precision=bf16",)),
    "fp16": Case(Layout({"tp": 2}, {"dp": 2}, more=_DENSE), ("train.precision=fp16",)),
    "additions": Case(
        Layout({"dp": 2}, _SP, more=_DENSE),
        (f"modules.vision.{_LORA}", f"modules.language.{_LORA}"),
    ),
    "a frozen encoder": Case(
        Layout({"dp": 2}, {"pp": 2}, True, _DENSE),
        ("modules.vision.freeze=true", "modules.language.freeze=['gpt.embedding.*']"),
    ),
    "tied embeddings": Case(
        Layout({"dp": 1}, {"pp": 2, "dp": 2}, more=_DENSE),
        ("modules.language.model.tie_embeddings=true",),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=_slow_but(name == "bf16")) for name in _EXACT]
)
def test_on_the_same_layout_training_goes_on_to_the_last_bit(
    pool: ActorPool, tmp_path: Path, name: str
) -> None:
    _goes_on_exactly(pool, _EXACT[name].layout.job(*_EXACT[name].overrides), tmp_path)


@pytest.mark.slow
def test_random_numbers_of_an_own_encoder_go_on_to_the_last_bit(
    pool: ActorPool, tmp_path: Path
) -> None:
    job = small_job({"dp": 2}, {"dp": 2}).model_dump()
    module = {field: job["modules"]["vision"][field] for field in ("group", "parallel")}
    kind = "tests.parity.encoders:ForgetfulEncoder"
    job["modules"]["vision"] = module | {"kind": kind, "projector": {"merge": 2}}
    _goes_on_exactly(pool, load_job(job), tmp_path)


def _goes_on_exactly(pool: ActorPool, job: JobConfig, tmp_path: Path) -> None:
    """Compare losses, weights and all of the optimizers' state with an undisturbed run's."""
    plans = saving.plans_of(job, _BEFORE + _AFTER)
    with pool.session(job) as session:
        saving.train(session, plans[:_BEFORE])
        source = saving.save(session, tmp_path / "a", _BEFORE)
        losses = saving.train(session, plans[_BEFORE:])
        end = saving.state_in(saving.save(session, tmp_path / "a", len(plans)), job)
        weights = saving.weights(session)
    with pool.session(job, source=source) as session:
        again = saving.state_in(saving.save(session, tmp_path / "b", _BEFORE), job)
        assert saving.differing(again, saving.state_in(source, job)) == []
        assert saving.train(session, plans[_BEFORE:]) == losses
        resumed = saving.state_in(saving.save(session, tmp_path / "b", len(plans)), job)
        assert saving.differing(resumed, end) == []
        assert saving.differing(saving.weights(session), weights) == []


@pytest.mark.parametrize(("one", "other"), _PAIRS)
def test_any_layout_goes_on_from_any_other(
    pool: ActorPool, tmp_path_factory: pytest.TempPathFactory, one: str, other: str
) -> None:
    saved = _saved(pool, one, tmp_path_factory)
    job = _LAYOUTS[other].job()
    plans = saving.plans_of(job, _BEFORE + _AFTER)
    with pool.session(job, source=saved.source) as session:
        source = saving.save(session, tmp_path_factory.mktemp("again"), _BEFORE)
        assert saving.differing(saving.state_in(source, job), saved.state) == []
        losses = saving.train(session, plans[_BEFORE:])
    assert losses == pytest.approx(saved.losses, rel=1e-5)


@dataclass(frozen=True)
class _Saved:
    source: saving.CheckpointSource
    state: saving.State
    losses: list[float]


_SAVED: dict[str, _Saved] = {}


def _saved(pool: ActorPool, name: str, folders: pytest.TempPathFactory) -> _Saved:
    """Return the checkpoint of a layout, made once per run of the tests, and what came after."""
    if name not in _SAVED:
        job = _LAYOUTS[name].job()
        folder = folders.mktemp("saved")
        source, losses, _ = saving.saved_and_continued(pool, job, folder, _BEFORE, _AFTER)
        _SAVED[name] = _Saved(source, saving.state_in(source, job), losses)
    return _SAVED[name]


def test_a_checkpoint_that_cannot_be_written_is_said_of_every_rank(
    pool: ActorPool, tmp_path: Path
) -> None:
    job = small_job({"dp": 2}, {"dp": 2})
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "vision").write_text("in the way")
    with pool.session(job) as session:
        results = saving.stored(session, SnapshotOrder(0, folder=str(tmp_path / "step")))
        errors = [each.error for each in results]
        assert all(f"{tmp_path}/step/vision" in error for error in errors[:2])
        assert errors[2:] == ["", ""]
        saving.save(session, tmp_path / "other", 0)
        assert len(saving.train(session, saving.plans_of(job, 1))) == 1
