"""A job is outlined where its checkpoints and data are not; its other mistakes are still found."""

from collections.abc import Mapping
from typing import Any

import pytest

from disagg_train.config.job import JobConfig
from disagg_train.config.load import read_content
from disagg_train.config.outline import JobOutline, outline_of
from disagg_train.errors import ConfigError
from tests.unit.config.jobs import JOB

_ELSEWHERE: Mapping[str, Any] = {
    **JOB,
    "modules": {
        "vision": {"pretrained": "/nowhere/vit", "group": "encoders", "parallel": {"dp": 2}},
        "language": {
            "kind": "gpt",
            "pretrained": "/nowhere/llm",
            "group": "language",
            "model": {"num_layers": 2},
            "parallel": {"tp": 4},
        },
    },
    "data": {"kind": "chat", "options": {"tokenizer": "/nowhere/llm"}},
    "kubernetes": {"image": "a:1", "checkpoints": {"claim": "c", "mount_path": "/c"}},
}


def _refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        outline_of(read_content(_ELSEWHERE, overrides))
    return str(caught.value)


def test_nothing_that_a_job_names_is_opened() -> None:
    outline = outline_of(read_content(_ELSEWHERE))
    assert {name: group.ranks for name, group in outline.groups.items()} == {
        "encoders": 2,
        "language": 4,
    }


def test_what_a_job_leaves_out_is_as_in_training() -> None:
    for name, field in JobOutline.model_fields.items():
        if name != "kubernetes":
            assert field.default == JobConfig.model_fields[name].default


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("modules.language.grop=a", "modules.language.grop: unknown field"),
        ("modules.language.parallel.tp=0", "modules.language.parallel.tp"),
        ("modules.language.group=null", "modules.language.group"),
        ("modules.vision.parallel.tp=0", "modules.vision.parallel.tp: "),
        ("modules.vision.group=null", "modules.vision.group: "),
        ("train.steps=0", "train.steps"),
        ("groups.language.rank=4", "groups.language.rank: unknown field"),
        ("kubernetes=null", "kubernetes: the job file has no such section"),
        ("kubernetes.checkpoints=null", "kubernetes.checkpoints"),
        ("recovery.grace_s=0", "recovery.grace_s"),
    ],
)
def test_other_mistakes_are_found(override: str, said: str) -> None:
    assert said in _refusal(override)


def test_sizes_that_no_checkpoint_decides_are_missed() -> None:
    with pytest.raises(ConfigError, match="num_attention_heads"):
        content = read_content({**_ELSEWHERE, "modules": JOB["modules"]})
        del content["modules"]["language"]["model"]["num_attention_heads"]
        outline_of(content)
