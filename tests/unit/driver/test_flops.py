"""Model FLOPs by a count of the model's matrices, and the peak that they are compared with."""

import pytest

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.driver.flops import Utilization, module_flops, peak_flops_per_s
from disagg_train.planner.step_plan import SampleSize, Slot
from tests.unit.config.jobs import JOB

SAMPLES = (
    SampleSize(0, 10, 5, {"vision": (Slot(0, 4),)}, {"vision": (16,)}),
    SampleSize(1, 7, 3),
)
H100S = {"encoders": "H100", "language": "H100"}
VISION_TOKENS, VISION_SQUARES = 16, 16**2
TOKENS, SQUARES = 17, 10**2 + 7**2


def _language(job: JobConfig) -> tuple[int, int]:
    """Return the LLM's weights that a token passes through, and its layers * width."""
    model = job.language.model
    width, layers = model.hidden_size, model.num_layers
    of_keys = model.query_groups * model.head_width
    layer = 2 * width * (width + of_keys) + 3 * width * model.ffn_size
    return layers * layer + model.vocab_size * width, layers * width


def test_the_llm_s_flops_are_six_per_weight_and_token_and_causal_attention() -> None:
    job = load_job(JOB)
    flops = module_flops(job)
    assert flops is not None
    weights, layers_width = _language(job)
    assert flops["language"].per_token == 6 * weights
    assert flops["language"].per_square == 3 * 2 * layers_width


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_what_is_computed_again_is_not_counted(recompute: str) -> None:
    again = load_job(JOB, [f"modules.language.recompute={recompute}"])
    assert module_flops(again) == module_flops(load_job(JOB))


def test_the_layout_does_not_matter() -> None:
    cut = load_job(JOB, ["modules.language.parallel={tp: 2, pp: 2}"])
    assert module_flops(cut) == module_flops(load_job(JOB))


def test_a_frozen_encoder_has_its_forward_alone() -> None:
    frozen = module_flops(load_job(JOB, ["modules.vision.freeze=true"]))
    free = module_flops(load_job(JOB))
    assert frozen is not None and free is not None
    assert frozen["vision"].per_square == free["vision"].per_square / 3
    assert frozen["vision"].per_token < free["vision"].per_token / 2


def test_mfu_is_flops_over_peak_and_time() -> None:
    job = load_job(JOB, ["train.precision=bf16"])
    flops = module_flops(job)
    assert flops is not None
    vision, language = flops["vision"], flops["language"]
    counted = vision.per_token * VISION_TOKENS + vision.per_square * VISION_SQUARES
    counted += language.per_token * TOKENS + language.per_square * SQUARES
    found = Utilization(job, H100S).mfu(SAMPLES, 2.0)
    assert found == pytest.approx(counted / (6 * 989e12 * 2.0))


def test_the_peak_is_of_each_group_s_gpus_and_of_the_precision() -> None:
    kinds = {"encoders": "L40S", "language": "H100"}
    shared = load_job(JOB, ["train.precision=bf16", "groups.encoders.gpus_per_rank=0.5"])
    assert peak_flops_per_s(shared, kinds) == 2 * 0.5 * 362e12 + 4 * 989e12
    assert peak_flops_per_s(load_job(JOB), kinds) == 2 * 91.6e12 + 4 * 67e12


@pytest.mark.parametrize("kinds", [{}, {"language": "H100"}, {**H100S, "encoders": "some CPU"}])
def test_nothing_is_said_of_hardware_that_nobody_knows(kinds: dict[str, str]) -> None:
    assert Utilization(load_job(JOB), kinds).mfu(SAMPLES, 2.0) is None


def test_nothing_is_said_of_an_encoder_that_nobody_knows() -> None:
    own = {"kind": "package.module:Class", "group": "encoders", "parallel": {"dp": 2}}
    content = {**JOB, "modules": {**JOB["modules"], "vision": own}}
    assert Utilization(load_job(content), H100S).mfu(SAMPLES, 2.0) is None
