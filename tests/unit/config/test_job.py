"""Rules that span several parts of the job file, and the training loop's own."""

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from disagg_train.config.base import Config
from disagg_train.config.load import load_job
from tests.unit.config.jobs import JOB, refusal


def job_without(*path: str) -> dict[str, Any]:
    content = yaml.safe_load(yaml.safe_dump(dict(JOB)))
    node = content
    for name in path[:-1]:
        node = node[name]
    del node[path[-1]]
    return content


def test_a_job_without_a_language_module_is_told_the_name() -> None:
    job = job_without("modules", "language")
    assert refusal(job=job) == ("modules ['vision'] have no `language`; name the LLM `language`")


def test_a_language_module_that_is_no_llm_is_refused() -> None:
    job = job_without("modules", "language")
    job["modules"]["language"] = job["modules"].pop("vision")
    message = refusal(job=job)
    assert "modules.language.kind is 'vit'" in message and "use 'gpt'" in message


def test_an_encoder_that_is_an_llm_is_refused() -> None:
    job = job_without("modules", "vision")
    job["modules"]["vision"] = job["modules"]["language"] | {"group": "encoders"}
    message = refusal(job=job)
    assert "modules.vision.kind is 'gpt'" in message and "use 'vit'" in message


def test_an_unknown_group_is_refused_with_the_known_ones() -> None:
    assert refusal("modules.vision.group=gpus") == (
        "modules.vision.group is 'gpus'; groups has ['encoders', 'language']"
    )


def test_a_group_that_nobody_uses_is_refused() -> None:
    message = refusal("groups.spare.ranks=1")
    assert "no module uses the groups ['spare']" in message
    assert "remove them or name one in a module's `group`" in message


def test_degrees_that_do_not_multiply_to_the_groups_ranks_are_shown_with_a_dp_that_does() -> None:
    assert refusal("groups.language.ranks=6") == (
        "modules.language.parallel: tp*cp*pp*dp = 2*1*1*2 = 4, but group 'language' has 6 ranks; "
        "set dp: 3 or set groups.language.ranks: 4"
    )


def test_where_no_dp_fits_the_group_tp_must_change() -> None:
    message = refusal("groups.language.ranks=5")
    assert message.endswith("change tp or set groups.language.ranks: 4")


def test_colocated_modules_must_each_fill_the_group() -> None:
    message = refusal("modules.vision.group=language", "groups={language: {ranks: 4}}")
    assert message.startswith("modules.vision.parallel: tp*cp*pp*dp = 1*1*1*2 = 2")
    assert "set dp: 4 or" in message


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["num_attention_heads=9", "hidden_size=63"], "num_attention_heads=9"),
        (["ffn_hidden_size=7"], "ffn_hidden_size=7"),
        (["num_query_groups=1"], "num_query_groups=1"),
        (["vocab_size=385"], "vocab_size=385"),
    ],
)
def test_a_size_that_tp_does_not_divide_is_named_with_the_tps_that_do(
    overrides: list[str], rule: str
) -> None:
    message = refusal(*(f"modules.language.model.{override}" for override in overrides))
    assert f"modules.language: tp=2 does not divide {rule}; use tp one of [1" in message


def test_heads_of_an_encoder_must_be_divisible_by_tp_too() -> None:
    message = refusal(
        "modules.vision.parallel={tp: 2}", "modules.vision.model.num_attention_heads=1"
    )
    assert message == (
        "modules.vision: tp=2 does not divide num_attention_heads=1; use tp one of [1]"
    )


def test_a_batch_smaller_than_its_microbatches_is_refused() -> None:
    assert refusal("train.global_batch=3", "train.microbatches=4") == (
        "train: global_batch=3 is smaller than microbatches=4, so some would be empty; "
        "use at most 3 microbatches or a larger batch"
    )


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=0",
        "train.window=0",
        "train.precision=fp8",
        "train.optimizer.lr=0",
        "train.optimizer.clip_grad=-1",
        "train.optimizer.min_lr_fraction=1.5",
        "train.evaluation.samples=-1",
        "groups.language.ranks=0",
        "deadlines.step_s=0",
        "fallback=smaller",
        "device=tpu",
    ],
)
def test_a_value_out_of_range_is_refused_with_its_field(override: str) -> None:
    field, value = override.split("=")
    message = refusal(override)
    assert message.startswith(f"{field}: ")
    assert value in message


def test_the_jobs_parts_by_role() -> None:
    job = load_job(JOB)
    assert job.language is job.modules["language"]
    assert list(job.encoders) == ["vision"]
    assert job.num_ranks == 6


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_job(JOB).train.steps = 5  # type: ignore[misc]


def test_every_field_of_the_job_file_is_documented() -> None:
    silent = [
        f"{part.__name__}.{name}"
        for part in parts_of_the_job()
        for name, field in part.model_fields.items()
        if not field.description
    ]
    assert silent == []


def parts_of_the_job() -> list[type[Config]]:
    parts: list[type[Config]] = [Config]
    for part in parts:
        parts += part.__subclasses__()
    return parts


@pytest.mark.parametrize("name", ["vision.0", "vision->x", "2vision", ""])
def test_a_module_whose_name_is_no_plain_name_is_refused(name: str) -> None:
    modules = {name: JOB["modules"]["vision"], "language": JOB["modules"]["language"]}
    assert f"{name!r} is no plain name" in refusal(job={**JOB, "modules": modules})
