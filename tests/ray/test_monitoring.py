"""Prometheus scrapes a running job, the dashboard has data, and no secret is anywhere."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from disagg_train.config.load import load_job, save_job
from tests.parity.jobs import small_job
from tests.ray.monitored import ON_GPUS
from tests.ray.ray_head import ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_DEPLOY = Path(__file__).parents[2] / "deploy"
_RUN = "monitored"
_DATA_S, _END_S, _POLL_S = 150.0, 60.0, 1.0
_ANSWER_S = 5.0
_SECRETS = {
    "HF_TOKEN": "a-plain-hub-token-4711",
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "RAY_AUTH_TOKEN": "ray-" + "fedcba9876543210" * 4,
    "AWS_SECRET_ACCESS_KEY": "wJalr" + "XUtnFEMIK7MDENG" * 2,
    "MLFLOW_TRACKING_PASSWORD": "correct-horse-battery",
}


@dataclass(frozen=True)
class Monitored:
    """What was seen of a run while it trained, and what it left."""

    output: Path
    missing: list[str]
    scraped: str
    printed: str
    status: int


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Return a folder whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(
        prefix="dt-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def monitored(folder: Path) -> Monitored:
    if not shutil.which("prometheus"):
        assert os.environ.get("CI") != "true", "CI needs Debian's package prometheus"
        pytest.skip("Debian's package prometheus is not installed")
    _write_job(folder)
    web = _free_port()
    out, err = folder / "out.txt", folder / "err.txt"
    of_ray = {"RAY_TMPDIR": str(folder / "ray"), "RAY_AUTH_MODE": "disabled"}
    of_ray |= {"RAY_worker_niceness": "0", "RAY_metrics_report_interval_ms": "1000"}
    environment = {**os.environ, **_SECRETS, **of_ray, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.ray.monitored", str(folder)]
    with (
        out.open("w") as to_out,
        err.open("w") as to_err,
        ray_head(folder / "ray", 4, {**of_ray, **_SECRETS}),
        _ended(subprocess.Popen(command, env=environment, stdout=to_out, stderr=to_err)) as run,
        _ended(_prometheus(folder, web)),
    ):
        missing = _missing(web, run, err)
        scraped = _scraped(folder)
        run.send_signal(signal.SIGTERM)
        status = run.wait(_END_S)
    printed = out.read_text() + err.read_text()
    return Monitored(folder / "run", missing, scraped, printed, status)


def _write_job(folder: Path) -> None:
    (folder / "ray").mkdir()
    content = small_job({}, {}, steps=1_000_000).model_dump(mode="json")
    content["name"] = _RUN
    content["data"]["kind"] = "tests.ray.sources:TalkativeSource"
    content["data"]["options"] = {"samples": 22, "text_only": 0.0, "encoder": "vision"}
    content["data"]["options"]["folder"] = str(folder)
    overrides = [
        f"output={folder / 'run'}",
        "data.on_bad_sample=skip",
        "train.evaluation={every_steps: 10, samples: 4}",
        "checkpoint.every_steps=20",
        "recovery.backoff_s=0",
    ]
    save_job(load_job(content, overrides), folder / "job.yaml")


def _prometheus(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """Start Prometheus with the shipped file, but for where it looks and how often."""
    content = yaml.safe_load((_DEPLOY / "prometheus" / "prometheus.yml").read_text())
    content["global"]["scrape_interval"] = "1s"
    (discovery,) = content["scrape_configs"][0]["file_sd_configs"]
    (listed,) = discovery["files"]
    assert Path(listed).parent == Path("/tmp/ray")
    discovery["files"] = [str(folder / "ray" / Path(listed).name)]
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(content))
    return subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
    )


class _ended:  # noqa: N801 - used like a function
    """Ends a process that a test started, whatever becomes of the test."""

    def __init__(self, process: "subprocess.Popen[Any]") -> None:
        self._process = process

    def __enter__(self) -> "subprocess.Popen[Any]":
        return self._process

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _missing(port: int, run: "subprocess.Popen[Any]", err: Path) -> list[str]:
    """Wait until every query of the dashboard has data; return those that have none in time."""
    until_s = time.monotonic() + _DATA_S
    missing = [*_queries(), _has_failed()]
    while missing and time.monotonic() < until_s:
        assert run.poll() is None, f"the run has ended: {err.read_text()}"
        time.sleep(_POLL_S)
        missing = [query for query in missing if not _has_data(port, query)]
    return missing


def _queries() -> list[str]:
    dashboard = json.loads((_DEPLOY / "grafana" / "disagg_train.json").read_text())
    found = []
    for panel in dashboard["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            run = ON_GPUS if "_mfu" in target["expr"] else _RUN
            query = target["expr"].replace("$run", run).replace("$__rate_interval", "1m")
            assert "$" not in query
            found.append(query)
    (variable,) = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    assert variable["definition"] == "label_values(ray_disagg_train_step, run)"
    return found


def _has_failed() -> str:
    """Return a query that has data once the rank's failure and the bad sample are counted."""
    both = 'ray_disagg_train_restarts{run="%s"} == 1 and ray_disagg_train_skipped_samples == 1'
    return both % _RUN


def _has_data(port: int, query: str) -> bool:
    parameters = urllib.parse.urlencode({"query": query})
    try:
        answer = json.loads(_get(f"http://127.0.0.1:{port}/api/v1/query?{parameters}"))
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{query}: {error.read().decode()}") from error
    except OSError:
        return False  # it is not up yet
    return any(series["value"][1] != "NaN" for series in answer["data"]["result"])


def _get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=_ANSWER_S) as answer:
        return str(answer.read().decode())


def _scraped(folder: Path) -> str:
    """Return all that Ray tells Prometheus to scrape."""
    listed = folder / "ray" / "prom_metrics_service_discovery.json"
    targets = [each for entry in json.loads(listed.read_text()) for each in entry["targets"]]
    return "".join(_get(f"http://{target}/metrics") for target in targets)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_every_query_of_the_dashboard_has_data(monitored: Monitored) -> None:
    assert monitored.missing == [], monitored.printed


def test_the_run_saved_and_ended_when_it_was_asked_to(monitored: Monitored) -> None:
    assert monitored.status == 128 + signal.SIGTERM, monitored.printed
    assert "a checkpoint is saved" in monitored.printed


def test_no_secret_of_the_environment_is_in_what_a_run_leaves(monitored: Monitored) -> None:
    written = [path for path in monitored.output.rglob("*") if path.is_file()]
    names = {path.name.partition(".")[0] for path in written}
    assert {"job", "metrics", "bad_samples", "failures", "events", "schedule"} <= names
    found = [
        (path.relative_to(monitored.output), name)
        for path in written
        for name, secret in _SECRETS.items()
        if secret.encode() in path.read_bytes()
    ]
    assert found == []


def test_no_secret_of_the_environment_is_printed_or_scraped(monitored: Monitored) -> None:
    assert "the hub does not answer ***" in monitored.printed
    assert f'run="{_RUN}"' in monitored.scraped
    for shown in (monitored.printed, monitored.scraped):
        assert [name for name, secret in _SECRETS.items() if secret in shown] == []
