"""The engine trains the model that a few lines of plain torch describe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.data.index import checked_sizes
from disagg_train.data.sampler import batches
from disagg_train.data.source import DataSource, open_source
from disagg_train.driver.plans import training_plans
from disagg_train.planner.step_plan import SampleSize, StepPlan
from tests.parity.plain_vlm import PlainVlm
from tests.parity.steps import EngineStep, engine_step, global_norm, gradient_errors

if TYPE_CHECKING:
    from actors.pool import ActorPool

pytestmark = pytest.mark.ray

TOLERANCE = 1e-5
JOB: Mapping[str, Any] = {
    "name": "plain-reference",
    "seed": 11,
    "device": "cpu",
    "groups": {"encoders": {"ranks": 2}, "language": {"ranks": 2}},
    "modules": {
        "vision": {
            "kind": "vit",
            "group": "encoders",
            "parallel": {"dp": 2},
            "model": {
                "num_layers": 2,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "patch_size": 4,
            },
            "projector": {"merge": 2},
        },
        "language": {
            "kind": "gpt",
            "group": "language",
            "parallel": {"tp": 2, "sp": True},
            "model": {
                "num_layers": 2,
                "hidden_size": 48,
                "num_attention_heads": 6,
                "num_query_groups": 2,
            },
        },
    },
    "data": {"kind": "digits", "options": {"max_digits": 5, "text_only": 0.3, "samples": 64}},
    "train": {
        "steps": 3,
        "global_batch": 10,
        "microbatches": 2,
        "optimizer": {"lr": 1e-3, "clip_grad": 0.0, "weight_decay": 0.0},
    },
}


@dataclass(frozen=True)
class EngineRun:
    """All steps of a job on the engine, and the plain model of the same sizes."""

    job: JobConfig
    source: DataSource
    steps: Sequence[EngineStep]

    def plain_step(self, weights: dict[str, Tensor], plan: StepPlan) -> float:
        """Return the plain model's mean loss, and leave its gradients on the weights."""
        vision, language = self.job.encoders["vision"], self.job.language
        model = PlainVlm(
            weights,
            patch_size=vision.model.patch_size,
            merge=vision.projector.merge,
            vit_heads=vision.model.num_attention_heads,
            query_groups=language.model.query_groups,
            rotary_base=language.model.rotary_base,
        )
        total = 0.0
        for size in plan.samples:
            loss = model.loss_sum(self.source.load(size.key), placeholders(size))
            (loss / plan.num_target_tokens).backward()
            total += loss.item()
        return total / plan.num_target_tokens


@pytest.fixture(scope="module")
def run(pool: "ActorPool") -> EngineRun:
    job = load_job(JOB)
    source = open_source(job)
    sampled = batches(checked_sizes(source, job, "train"), job.seed, job.train.global_batch)
    with pool.session(job) as session:
        steps = [engine_step(session.groups, plan) for plan in training_plans(job, sampled)]
    return EngineRun(job, source, steps)


def placeholders(size: SampleSize) -> list[int]:
    runs = size.slots.get("vision", ())
    return [at for run in runs for at in range(run.position, run.position + run.count)]


def test_the_batches_mix_images_and_text_only_samples(run: EngineRun) -> None:
    for step in run.steps:
        num_images = sum(bool(placeholders(size)) for size in step.plan.samples)
        assert 0 < num_images < len(step.plan.samples)


@pytest.mark.parametrize("number", range(3))
def test_every_gradient_equals_plain_torch(run: EngineRun, number: int) -> None:
    """Biases are zero and norm weights one in the first step, and no longer in the next."""
    step = run.steps[number]
    weights = step.plain_weights()
    loss = run.plain_step(weights, step.plan)
    expected = {name: weight.grad for name, weight in weights.items()}
    assert step.loss == pytest.approx(loss, rel=TOLERANCE)
    assert step.grad_norm == pytest.approx(global_norm(expected.values()), rel=TOLERANCE)
    assert step.gradients.keys() == expected.keys()
    errors = gradient_errors(step.gradients, expected)
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}


def test_three_steps_of_adam_equal_plain_torch(run: EngineRun) -> None:
    weights, settings = run.steps[0].plain_weights(), run.job.train.optimizer
    adam = torch.optim.AdamW(
        weights.values(), betas=settings.betas, eps=settings.eps, weight_decay=0.0
    )
    expected = []
    for step in run.steps:
        adam.zero_grad()
        expected.append(run.plain_step(weights, step.plan))
        for group in adam.param_groups:
            group["lr"] = step.plan.learning_rate
        adam.step()
    assert [step.loss for step in run.steps] == pytest.approx(expected, rel=TOLERANCE)
