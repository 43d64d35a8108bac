"""Reading a job: files, overrides, and messages that name the field and the way out."""

from pathlib import Path

import pytest
import yaml

from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.errors import ConfigError
from tests.unit.config.jobs import JOB, refusal


def plain_job() -> dict[str, object]:
    return yaml.safe_load(yaml.safe_dump(dict(JOB)))


def test_a_file_its_content_and_a_job_load_alike(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(dict(JOB)))
    job = load_job(path)
    assert job == load_job(str(path)) == load_job(JOB) == load_job(job)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no job file .*nowhere\.yaml"):
        load_job(tmp_path / "nowhere.yaml")


def test_a_folder_in_place_of_a_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=tmp_path.name):
        load_job(tmp_path)


def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: digits\ngroups: [1\n")
    with pytest.raises(ConfigError, match=r"(?s)job\.yaml is not valid YAML: .*line 2"):
        load_job(path)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "digits"])
def test_a_file_without_fields_is_told_how_a_job_starts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no fields; a job starts with `name:`"):
        load_job(path)


def test_an_override_replaces_a_value_and_leaves_its_neighbours() -> None:
    job = load_job(JOB, ["train.optimizer.lr=0.5", "modules.vision.freeze=true", "seed=7"])
    assert job.train.optimizer.lr == 0.5
    assert job.modules["vision"].freeze is True
    assert job.seed == 7
    assert job.train.steps == 3


def test_overrides_make_tables_that_the_job_left_out() -> None:
    job = load_job(JOB, ["data.options.path=/tmp/x", "data.kind=my.module:Source"])
    assert (job.data.kind, job.data.options) == ("my.module:Source", {"path": "/tmp/x"})


def test_the_last_override_of_a_field_wins_and_values_may_hold_equal_signs() -> None:
    assert load_job(JOB, ["name=first", "name=a=b"]).name == "a=b"


def test_override_values_are_yaml() -> None:
    job = load_job(JOB, ["train.optimizer.betas=[0.8, 0.9]", "train.window=null"])
    assert job.train.optimizer.betas == (0.8, 0.9)
    assert job.train.window is None


def test_an_exponent_without_a_dot_is_a_number_although_yaml_reads_a_string() -> None:
    assert load_job(JOB, ["train.optimizer.lr=1e-3"]).train.optimizer.lr == 0.001


def test_overrides_apply_to_a_job_as_well_and_leave_it_unchanged() -> None:
    job = load_job(JOB)
    assert load_job(job, ["train.steps=9"]).train.steps == 9
    assert job.train.steps == 3


def test_overrides_leave_the_given_content_unchanged() -> None:
    content = plain_job()
    load_job(content, ["train.optimizer.lr=0.5"])
    assert content == plain_job()


def test_an_override_without_an_equal_sign_is_told_the_form() -> None:
    assert refusal("train.steps") == "override 'train.steps' has no '='; write a.b.c=value"


def test_an_override_below_a_value_names_the_value() -> None:
    message = refusal("name.first=x")
    assert message == "override 'name.first=x': name is a value, not a table of fields"


def test_an_override_whose_value_is_no_yaml_is_a_config_error() -> None:
    assert "train.steps=[1" in refusal("train.steps=[1")


@pytest.mark.parametrize(
    ("override", "path", "suggestion"),
    [
        ("train.mikrobatches=2", "train.mikrobatches", "microbatches"),
        ("modules.vision.model.hiden_size=2", "modules.vision.model.hiden_size", "hidden_size"),
        ("modules.language.paralel={}", "modules.language.paralel", "parallel"),
        ("ouput=x", "ouput", "output"),
    ],
)
def test_an_unknown_field_is_named_with_a_suggestion(
    override: str, path: str, suggestion: str
) -> None:
    assert refusal(override) == f"{path}: unknown field; did you mean {suggestion!r}?"


def test_an_unknown_field_like_no_other_has_no_suggestion() -> None:
    assert refusal("qqqqqqq=1") == "qqqqqqq: unknown field"


def test_a_missing_field_is_named() -> None:
    content = plain_job()
    del content["train"]
    assert refusal(job=content) == "train: this field is required"


def test_a_value_of_the_wrong_type_is_shown() -> None:
    message = refusal("train.steps=many")
    assert message.startswith("train.steps: ")
    assert message.endswith("got 'many'")


def test_several_broken_fields_are_all_listed() -> None:
    lines = refusal("train.steps=0", "groups.language.ranks=-1", "colour=red").splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "groups.language.ranks",
        "train.steps",
        "colour",
    ]


def test_an_unknown_kind_of_module_is_told_the_known_ones() -> None:
    message = refusal("modules.vision.kind=resnet")
    assert message.startswith("modules.vision")
    assert "siglip2" in message and "gpt" in message


@pytest.mark.parametrize("name", ["vit", "gpt"])
def test_a_module_named_like_its_kind_keeps_its_name_in_messages(name: str) -> None:
    content = plain_job()
    modules = content["modules"]
    assert isinstance(modules, dict)
    modules[name] = modules.pop("vision")
    message = refusal(f"modules.{name}.model.num_layers=0", job=content)
    assert message.startswith(f"modules.{name}.model.num_layers: ")


def test_what_loads_is_a_job() -> None:
    assert isinstance(load_job(JOB), JobConfig)
