"""The engine trains the model that a few lines of plain torch describe."""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.data.index import checked_sizes
from disagg_train.data.sampler import batches
from disagg_train.data.source import DataSource, open_source
from disagg_train.driver.loop import collect
from disagg_train.driver.plans import training_plans
from disagg_train.planner.step_plan import SampleSize, StepPlan
from tests.parity.plain_vlm import PlainVlm

if TYPE_CHECKING:
    from actors.group import ActorGroup
    from actors.pool import ActorPool

pytestmark = pytest.mark.ray

TOLERANCE = 1e-5
DEADLINE_S = 120.0
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

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class EngineStep:
    """One step of the engine: the weights it started from, and what came out."""

    plan: StepPlan
    weights: Mapping[str, NDArray[Any]]
    loss: float
    grad_norm: float
    gradients: Mapping[str, NDArray[Any]]

    def plain_weights(self) -> Weights:
        """Return the weights in float64, so that only the engine's rounding is seen."""
        return {
            name: torch.tensor(weight, dtype=torch.float64, requires_grad=True)
            for name, weight in self.weights.items()
        }


@dataclass(frozen=True)
class EngineRun:
    """All steps of a job on the engine, and the plain model of the same sizes."""

    job: JobConfig
    source: DataSource
    steps: Sequence[EngineStep]

    def plain_step(self, weights: Weights, plan: StepPlan) -> float:
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


def engine_step(groups: "Sequence[ActorGroup]", plan: StepPlan) -> EngineStep:
    weights = merged([group.weights() for group in groups])
    report = collect([group.train(plan, None) for group in groups], DEADLINE_S)[0]
    gradients = merged([group.gradients() for group in groups])
    loss = report.loss_sum / plan.num_target_tokens
    return EngineStep(plan, weights, loss, report.grad_norm, gradients)


def merged(
    pending: "Sequence[Future[list[dict[str, NDArray[Any]]]]]",
) -> dict[str, NDArray[Any]]:
    """Return what each module's first rank gave, by name."""
    answers = [rank for future in pending for rank in future.result(timeout=DEADLINE_S)]
    return {name: full for answer in answers for name, full in answer.items()}


def placeholders(size: SampleSize) -> list[int]:
    runs = size.slots.get("vision", ())
    return [at for run in runs for at in range(run.position, run.position + run.count)]


def global_norm(gradients: Iterable[Tensor]) -> float:
    return math.sqrt(sum(grad.square().sum().item() for grad in gradients))


def gradient_errors(
    found: Mapping[str, NDArray[Any]], expected: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return each weight's relative error; gradients that are nearly zero count by a floor."""
    floor = 1e-3 * global_norm(expected.values()) / math.sqrt(len(expected))
    return {
        name: ((torch.tensor(found[name]) - grad).norm() / max(grad.norm().item(), floor)).item()
        for name, grad in expected.items()
    }


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
