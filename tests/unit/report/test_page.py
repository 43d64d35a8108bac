"""The page of a run: whatever the run left, nothing from elsewhere, and no secrets."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from disagg_train.cli import main
from disagg_train.errors import ConfigError, DataError
from disagg_train.report.page import write_report
from tests.report.runs import job_of, write_run

SECRETS = {
    "option": "swordfish-option",
    "env": "swordfish-variable",
    "environment": "swordfish-environment",
    "issued": "hf_abcdefghijklmnopqrstuvwx",
}


class _Tags(HTMLParser):
    """Collects what a page holds: tags, and the content of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        is_script = bool(self.tags) and self.tags[-1][0] == "script"
        (self.scripts if is_script else self.texts).append(data)

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", job_of(tmp_path / "run", steps=8))


def _page(run: Path) -> _Tags:
    return _Tags(write_report(run).read_text())


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _change_job(run: Path, **changes: Any) -> None:
    content = yaml.safe_load((run / "job.yaml").read_text()) | changes
    (run / "job.yaml").write_text(yaml.safe_dump(content))


def test_the_page_asks_nothing_of_any_other_place(run: Path) -> None:
    page = _page(run)
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'")
    assert "url(" not in write_report(run).read_text()


def test_the_page_tells_of_all_parts(run: Path) -> None:
    page = _page(run)
    text = " ".join(page.texts)
    for title in ("Modules and where they are", "Curves", "Timeline", "Balance", "Checkpoints"):
        assert title in text
    assert "8" in text and "of 8" in text
    assert [step["number"] for step in page.data["steps"]] == [1, 2, 3]
    assert page.data["steps"][0]["sentence"].startswith("Step 1 took ")
    assert "Not in this run's folder" not in text
    assert re.search(r"in step 5\b", text), "the skipped step"


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("trace.json", "No step was recorded"),
        ("plans.jsonl", "Needs the step plans of recorded steps"),
        ("schedule.yaml", "Needs the recorded steps (trace.json) and their op lists"),
        ("metrics.jsonl", "No step is done yet"),
        ("evaluations.jsonl", "Curves"),
    ],
)
def test_what_a_run_did_not_leave_is_said(run: Path, gone: str, said: str) -> None:
    (run / gone).unlink()
    assert said in " ".join(" ".join(_page(run).texts).split())


def test_a_run_that_has_only_begun_has_a_page(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "job.yaml":
            path.unlink()
    page = _page(run)
    assert page.data["steps"] == []
    assert "still running, stopped or failed" in " ".join(page.texts)


def test_names_and_texts_are_never_read_as_html(run: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    _change_job(run, name=evil)
    failure = {"step": 3, "headline": evil}
    _append(run / "failures.jsonl", failure)
    _append(run / "bad_samples.jsonl", {"key": 4, "reason": evil})
    trace = (run / "trace.json").read_text().replace("encoders 0", f"{evil} 0")
    (run / "trace.json").write_text(trace)
    page = _page(run)
    assert [a.get("type") for t, a in page.tags if t == "script"] == ["application/json", "module"]
    assert not [a for t, a in page.tags if t == "img" or "onerror" in a]
    assert evil in page.data["steps"][0]["rows"][0]
    assert "".join(page.texts).count(evil) >= 4


def test_secrets_do_not_come_into_the_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_PASSWORD", SECRETS["environment"])
    variables = {"PROXY_LOGIN": SECRETS["env"]}
    kubernetes = {"image": "registry/image", "env": variables}
    kubernetes["checkpoints"] = {"claim": "claim", "mount_path": "/checkpoints"}
    options = {"api_key": SECRETS["option"], "headers": {"auth_token": SECRETS["issued"]}}
    data = {"kind": "my.source:Source", "options": options}
    _change_job(run, data=data, kubernetes=kubernetes)
    told = f"cannot open with {json.dumps(SECRETS)}"
    _append(run / "failures.jsonl", {"step": 3, "headline": told})
    (run / "failures").mkdir()
    (run / "failures" / "001-step-3.txt").write_text(told)
    _append(run / "bad_samples.jsonl", {"key": 4, "reason": told})
    page = write_report(run).read_text()
    assert page.count("cannot open with") == 3
    for secret in SECRETS.values():
        assert secret not in page


def test_failures_and_samples_left_out_are_told(run: Path) -> None:
    _append(run / "failures.jsonl", {"step": 3, "headline": "group 'language' rank 1 died"})
    (run / "failures").mkdir()
    (run / "failures" / "001-step-3.txt").write_text("a stack")
    _append(run / "bad_samples.jsonl", {"key": 4, "reason": "truncated"})
    text = " ".join(_page(run).texts)
    assert "group 'language' rank 1 died" in text
    assert "a stack" in text
    assert "truncated" in text


def test_a_trace_of_other_stages_leaves_the_rest_of_the_page(run: Path) -> None:
    path = run / "trace.json"
    path.write_text(path.read_text().replace("forward language ", "forward language.7 "))
    assert "The steps cannot be simulated" in " ".join(_page(run).texts)


def test_the_plans_of_another_layout_are_not_used(run: Path) -> None:
    content = yaml.safe_load((run / "job.yaml").read_text())
    content["groups"]["encoders"]["ranks"] = 3
    content["modules"]["vision"]["parallel"]["dp"] = 3
    (run / "job.yaml").write_text(yaml.safe_dump(content))
    assert "Needs the step plans" in " ".join(_page(run).texts)


def test_the_command_writes_the_page_where_it_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "a.html")]) == 0
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "a.html").exists()
    assert f"written to {tmp_path / 'a.html'}" in capsys.readouterr().out


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no job\.yaml; name the output folder"):
        write_report(tmp_path)


def test_a_file_of_another_version_is_named(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl is damaged or of another version"):
        write_report(run)
