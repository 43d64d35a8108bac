"""A whole vision-language model from one checkpoint: gradients as in transformers' autograd."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from actors.pool import ActorPool
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.config.modules import TransformerModule
from disagg_train.data.index import checked_sizes
from disagg_train.data.sampler import batches
from disagg_train.data.source import IGNORE, DataSource, open_source
from disagg_train.driver.plans import training_plans
from disagg_train.modules.hf.encoders import encoder_naming
from disagg_train.modules.hf.language import language_naming
from disagg_train.planner.step_plan import StepPlan
from tests.parity.jobs import Degrees
from tests.parity.photos import save_llava
from tests.parity.steps import engine_step, gradient_errors

pytestmark = pytest.mark.ray

_PROJECTOR = {
    f"projector.encoder.{ours}.{kind}": f"model.multi_modal_projector.{theirs}.{kind}"
    for ours, theirs in (("linear_fc1", "linear_1"), ("linear_fc2", "linear_2"))
    for kind in ("weight", "bias")
}
_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    folder = tmp_path_factory.mktemp("llava")
    yield folder, save_llava(folder)


@pytest.mark.parametrize(
    ("vision", "language", "colocated"),
    [
        ({"dp": 2}, {"tp": 2, "sp": True}, False),
        ({"tp": 2}, {"pp": 2}, True),
        pytest.param({"pp": 2}, {"tp": 2, "dp": 2}, False, marks=pytest.mark.slow),
        pytest.param({"tp": 2, "sp": True}, {"cp": 2}, False, marks=pytest.mark.slow),
        pytest.param({"cp": 2}, {"dp": 2}, True, marks=pytest.mark.slow),
    ],
    ids=["dp2-tp2sp", "tp2-pp2-colocated", "pp2-tp2dp2", "tp2sp-cp2", "cp2-dp2-colocated"],
)
def test_gradients_equal_those_of_transformers(
    pool: ActorPool,
    llava: tuple[Path, Any],
    vision: Degrees,
    language: Degrees,
    colocated: bool,
) -> None:
    folder, model = llava
    job = load_job(_job(folder, vision, language, colocated))
    source = open_source(job)
    sampled = batches(checked_sizes(source, job, "train"), job.seed, job.train.global_batch)
    with pool.session(job) as session:
        step = engine_step(session.groups, next(training_plans(job, sampled)))
    theirs = Theirs(job, model)
    theirs.take_projector(step.weights)
    assert {
        n for n, w in step.weights.items() if (theirs.weight(n) - torch.tensor(w)).any()
    } == set()
    assert step.loss == pytest.approx(theirs.backward(source, step.plan), rel=1e-5)
    errors = gradient_errors(step.gradients, {n: theirs.gradient(n) for n in step.weights})
    assert {name: error for name, error in errors.items() if error > _TOLERANCE} == {}


class Theirs:
    """The same model in transformers, its tensors by our names."""

    def __init__(self, job: JobConfig, model: Any) -> None:
        self._model, self._parameters = model, dict(model.named_parameters())
        vision = job.encoders["vision"]
        assert isinstance(vision, TransformerModule)
        self._namings = {
            "vision": ("model.vision_tower.", encoder_naming(vision)),
            "language": ("model.language_model.", language_naming(job.language.model, "qwen2")),
        }
        model.zero_grad()

    def weight(self, name: str) -> Tensor:
        """Return the full weight of one of our names."""
        return self._joined(name, lambda parameter: parameter.detach())

    def gradient(self, name: str) -> Tensor:
        """Return the full gradient of one of our names."""
        return self._joined(name, lambda parameter: parameter.grad)

    def take_projector(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Set their projector to ours, which was drawn."""
        with torch.no_grad():
            for ours, theirs in _PROJECTOR.items():
                self._parameters[theirs].copy_(torch.tensor(weights[f"vision.{ours}"]))

    def backward(self, source: DataSource, plan: StepPlan) -> float:
        """Leave the gradients of a step's mean loss; return it."""
        total = 0.0
        for size in plan.samples:
            sample = source.load(size.key)
            photos = sample.inputs.get("vision", ())
            pixels = torch.tensor(np.stack(photos)).permute(0, 3, 1, 2) if photos else None
            tokens = torch.tensor(sample.token_ids_S)[None]
            logits_SV = self._model(input_ids=tokens, pixel_values=pixels).logits[0]
            labels = torch.tensor(sample.labels_S)
            loss = cross_entropy(logits_SV, labels, ignore_index=IGNORE, reduction="sum")
            (loss / plan.num_target_tokens).backward()
            total += loss.item()
        return total / plan.num_target_tokens

    def _joined(self, name: str, of: Callable[[Any], Tensor]) -> Tensor:
        module, _, path = name.partition(".")
        if path in _PROJECTOR:
            return of(self._parameters[_PROJECTOR[path]])
        prefix, naming = self._namings[module]
        rule = naming(path)
        assert rule is not None, name
        return rule.join([of(self._find(prefix, each)) for each in rule.names])

    def _find(self, prefix: str, name: str) -> Any:
        """Return a parameter of theirs; the output layer lies outside the language model."""
        plain = name.removeprefix("model.")
        found = self._parameters.get(prefix + plain)
        return self._parameters[plain] if found is None else found


def _job(folder: Path, vision: Degrees, language: Degrees, colocated: bool) -> dict[str, Any]:
    home = "language" if colocated else "encoders"
    ranks = {home: np.prod([d for d in vision.values() if d is not True])}
    ranks["language"] = np.prod([d for d in language.values() if d is not True])
    return {
        "name": "llava",
        "groups": {name: {"ranks": int(count)} for name, count in ranks.items()},
        "modules": {
            "vision": {
                "kind": "siglip",
                "group": home,
                "parallel": vision,
                "pretrained": str(folder),
            },
            "language": {
                "kind": "gpt",
                "group": "language",
                "parallel": language,
                "pretrained": str(folder),
            },
        },
        "data": {"kind": "tests.parity.photos:Photos"},
        "train": {
            "steps": 1,
            "global_batch": 7,
            "microbatches": 2,
            "optimizer": {"lr": 1e-3, "clip_grad": 0.0},
            "evaluation": {"samples": 0},
        },
    }
