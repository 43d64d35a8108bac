"""Freezing by name, low-rank additions and 16-bit training, over several modules and ranks."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.pool import ActorPool
from actors.session import Session
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.data.index import checked_sizes
from disagg_train.data.sampler import batches
from disagg_train.data.source import open_source
from disagg_train.driver import loop
from disagg_train.driver.plans import training_plans
from disagg_train.driver.step_planner import evaluation_plan
from disagg_train.metrics.records import StepRecord
from disagg_train.trainer import Trainer
from tests.parity.jobs import Degrees, small_job

pytestmark = pytest.mark.ray

_LORA = "lora={rank: 4, alpha: 8.0}"
_BOTH_LORA = [f"modules.vision.{_LORA}", f"modules.language.{_LORA}"]
_SP = {"tp": 2, "sp": True}

Weights = dict[str, NDArray[np.float32]]


def run(pool: ActorPool, job: JobConfig, steps: int) -> tuple[list[StepRecord], list[Weights]]:
    """Return the records of some steps, and the weights before and after each."""
    sizes = checked_sizes(open_source(job), job, "train")
    plans = islice(training_plans(job, batches(sizes, job.seed, job.train.global_batch)), steps)
    records = []
    with pool.session(job) as session:
        weights = [_weights(session)]
        for plan in plans:
            records += [r for r, _ in loop.train(session.groups, [plan], job.deadlines.step_s)]
            weights.append(_weights(session))
    return records, weights


def _weights(session: Session) -> Weights:
    found = {}
    for group in session.groups:
        for part in group.weights().result(timeout=60):
            found.update(part)
    return found


def changed(before: Weights, after: Weights) -> set[str]:
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


@pytest.mark.parametrize(
    ("vision", "language", "colocated", "more"),
    [
        pytest.param({"dp": 2}, _SP, False, _BOTH_LORA, id="dp2-tp2sp"),
        pytest.param(
            {"tp": 2},
            {"pp": 2},
            False,
            [*_BOTH_LORA, "train.schedule=zero_bubble", "modules.language.recompute=full"],
            id="tp2-pp2 zero bubble, computed again",
            marks=pytest.mark.slow,
        ),
        pytest.param({"pp": 2}, {"tp": 2}, False, _BOTH_LORA, id="pp2-tp2", marks=pytest.mark.slow),
        pytest.param(
            {"dp": 2}, {"cp": 2}, True, _BOTH_LORA, id="colocated", marks=pytest.mark.slow
        ),
        pytest.param(
            {},
            {"pp": 2},
            False,
            [*_BOTH_LORA, "modules.language.model.tie_embeddings=true"],
            id="tied and frozen embeddings",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_additions_train_as_in_one_process(
    pool: ActorPool, vision: Degrees, language: Degrees, colocated: bool, more: Sequence[str]
) -> None:
    job = load_job(small_job(vision, language, colocated=colocated), more)
    parity = Trainer(job).verify(4, pool)
    assert parity.ok, parity
    assert parity.max_rel_weight < 1e-3, parity


@pytest.mark.parametrize(
    ("language", "colocated"),
    [
        pytest.param({"pp": 2}, False, id="a whole stage"),
        pytest.param({"pp": 2}, True, id="a whole stage, colocated", marks=pytest.mark.slow),
        pytest.param(_SP, False, id="tp2sp", marks=pytest.mark.slow),
    ],
)
def test_weights_frozen_by_name_stay_and_the_rest_trains_as_in_one_process(
    pool: ActorPool, language: Degrees, colocated: bool
) -> None:
    patterns = [
        "modules.language.freeze=['gpt.embedding.*', 'gpt.decoder.layers.0.*']",
        "modules.vision.freeze=['embedding.*', 'encoder.layers.?.self_attention.*']",
    ]
    job = load_job(small_job({"dp": 2}, language, colocated=colocated), patterns)
    parity = Trainer(job).verify(2, pool)
    assert parity.ok, parity
    _, (before, after) = run(pool, job, 1)
    still = ("language.gpt.embedding.", "language.gpt.decoder.layers.0.", "vision.embedding.")
    frozen = {n for n in before if n.startswith(still)}
    frozen |= {n for n in before if n.startswith("vision.") and ".self_attention." in n}
    assert frozen and changed(before, after) == set(before) - frozen


def test_a_pattern_that_matches_on_one_stage_is_fine_and_on_none_an_error(
    pool: ActorPool,
) -> None:
    base = small_job({"dp": 2}, {"pp": 2}, colocated=True)
    job = load_job(base, ["modules.language.freeze=['gpt.embedding.*', 'gpt.head.*']"])
    with pytest.raises(Exception, match=r"'gpt\.head\.\*' matches none .* nearest are \['gpt\."):
        pool.session(job)


@pytest.mark.parametrize(
    "language", [{"dp": 1}, pytest.param(_SP, marks=pytest.mark.slow)], ids=["2 ranks", "tp2sp"]
)
def test_bf16_trains_over_a_boundary_as_fp32_does_within_a_few_percent(
    pool: ActorPool, language: Degrees
) -> None:
    base = small_job({}, language)
    losses = {}
    for precision in ("fp32", "bf16"):
        records, weights = run(pool, load_job(base, [f"train.precision={precision}"]), 10)
        losses[precision] = [record.loss for record in records]
        assert all(weight.dtype == np.float32 for weight in weights[-1].values())
        assert not any(record.loss_scale for record in records)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"][-1] < 0.8 * losses["bf16"][0]


def test_an_overflow_in_fp16_skips_the_step_of_every_module_and_halves_the_scale(
    pool: ActorPool,
) -> None:
    overrides = ["train.precision=fp16", "train.loss_scale.initial=65536.0"]
    records, weights = run(pool, load_job(small_job({"dp": 2}, _SP), overrides), 8)
    scales = [record.loss_scale for record in records]
    skipped = [record.skipped for record in records]
    assert skipped[0] and not skipped[-1]
    for record, scale, before, after in zip(
        records[1:], scales, weights[1:], weights[2:], strict=False
    ):
        assert record.loss_scale == (scale / 2 if records[record.step - 1].skipped else scale)
        moved = {name.partition(".")[0] for name in changed(before, after)}
        assert moved == (set() if record.skipped else {"vision", "language"})
    assert not changed(weights[0], weights[1])
    trained = [record.loss for record in records if not record.skipped]
    assert trained[-1] < trained[0]


@pytest.mark.slow
def test_held_out_samples_are_scored_and_decoded_in_bf16(pool: ActorPool) -> None:
    base = small_job({"pp": 2}, {"pp": 2, **_SP}, evaluation={"samples": 8})
    losses = []
    for precision in ("fp32", "bf16"):
        job = load_job(base, [f"train.precision={precision}"])
        plan = evaluation_plan(job, checked_sizes(open_source(job), job, "evaluation"))
        with pool.session(job) as session:
            reports = loop.evaluate(session.groups, plan, job.deadlines.step_s)
        losses.append(sum(report.loss_sum for report in reports))
        answered = {key for report in reports for key in report.answers}
        assert answered == {sample.key for sample in plan.samples}
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
