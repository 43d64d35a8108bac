"""Mistakes that others made in such a trainer, each with the test that would have told.

Those of the boundary itself are in ``tests/unit/boundary/test_past_mistakes.py``.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.pool import ActorPool
from disagg_train.config.job import JobConfig
from disagg_train.driver.parity import one_process
from disagg_train.trainer import Trainer
from tests.parity.jobs import Degrees, small_job

pytestmark = pytest.mark.ray

Tensors = dict[str, NDArray[Any]]


@pytest.mark.parametrize(
    ("vision", "language"), [({"dp": 3}, {"dp": 1}), ({"dp": 1}, {"dp": 3})], ids=["3:1", "1:3"]
)
def test_encoder_gradients_do_not_depend_on_the_dp_ratio(
    pool: ActorPool, vision: Degrees, language: Degrees
) -> None:
    parity = Trainer(small_job(vision, language)).verify(2, pool)
    assert parity.ok, parity


def weights_by_rank(job: JobConfig, pool: ActorPool) -> list[Tensors]:
    """Return the initial weights that each rank reports."""
    with pool.session(job) as session:
        return [part for group in session.groups for part in group.weights().result(timeout=60)]


def union(parts: list[Tensors]) -> Tensors:
    return {name: tensor for part in parts for name, tensor in part.items()}


TP2_DP2: Degrees = {"tp": 2, "dp": 2}


@pytest.mark.parametrize(
    ("vision", "language", "colocated"),
    [
        (TP2_DP2, {"dp": 2}, False),
        ({"dp": 2}, TP2_DP2, False),
        (TP2_DP2, TP2_DP2, True),
        ({"tp": 2, "dp": 2, "sp": True}, {"tp": 4}, True),
        ({"tp": 4}, {"dp": 4}, True),
    ],
    ids=["encoder tp2 dp2", "llm tp2 dp2", "both", "tp2 and tp4 in a process", "tp4 and tp1"],
)
def test_every_weight_is_saved_once_and_is_the_one_of_one_process(
    pool: ActorPool, vision: Degrees, language: Degrees, colocated: bool
) -> None:
    """With a tp rank left out of the replica id, two ranks write one weight, or none does.

    Both modules share a process here, and so they would a tracker of random states: with
    unlike tp, the second one's weights would come out as others than alone.
    """
    job = small_job(vision, language, colocated=colocated)
    parts = weights_by_rank(job, pool)
    counts = Counter(name for part in parts for name in part)
    expected = union(weights_by_rank(one_process(job), pool))
    assert counts == Counter(dict.fromkeys(expected, 1))
    found = union(parts)
    assert all(np.array_equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("degrees", [{}, {"tp": 2, "sp": True}, {"cp": 2, "dp": 2}, {"pp": 2}])
def test_losses_of_every_module_are_sums_over_tokens(degrees: Degrees) -> None:
    """One module that averages among others that sum gets gradients of another scale."""
    from disagg_train.modules.specs import megatron_config

    job = small_job(degrees, degrees)
    for module in job.modules.values():
        config = megatron_config(module.model, module.parallel)
        assert config.calculate_per_token_loss, module.kind


def test_the_parts_of_a_running_job_sum_too_the_projector_among_them(pool: ActorPool) -> None:
    job = small_job({}, {}).model_copy(deep=True)
    with pool.session(job) as session:
        actors = [actor for group in session.groups for actor in group.actors]
        import ray

        flags = ray.get([a.__ray_call__.remote(per_token_flags) for a in actors], timeout=60)
    found = {name: flag for part in flags for name, flag in part.items()}
    assert any("projector" in name for name in found)
    assert any(name.startswith("vision") for name in found)
    assert any(name.startswith("language") for name in found)
    assert [name for name, flag in found.items() if not flag] == []


def per_token_flags(actor: Any) -> dict[str, bool]:
    """Return the flag of every Megatron config on a rank, by the path of the part that has it."""
    found = {}
    for stage in actor._rank._stages.values():
        for path, part in stage.model.named_modules():
            config = getattr(part, "config", None)
            if hasattr(config, "calculate_per_token_loss"):
                found[f"{stage.module}.{path}"] = config.calculate_per_token_loss
        ddp = getattr(stage.model, "ddp_config", None)
        if ddp is not None:
            found[f"{stage.module} ddp does not average"] = not ddp.average_in_collective
    return found
