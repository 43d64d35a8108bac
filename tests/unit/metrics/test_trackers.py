"""What Weights & Biases and MLflow are told: each step once, a resumed run in the same run.

The libraries are stood in for, with the arguments that theirs have; where they are installed,
they themselves are asked as well, without a server.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from disagg_train.metrics.mlflow_runs import MlflowRun
from disagg_train.metrics.sinks import Sink
from disagg_train.metrics.trackers import TrackedRun
from disagg_train.metrics.weights_and_biases import WeightsAndBiases
from tests.unit.metrics.steps import evaluation, measures

CONTENT: Mapping[str, Any] = {"name": "digits", "train": {"steps": 3, "lr": 0.1}, "plan": None}


class _WandbRun:
    """A run at a server that keeps what it has, and takes no step back."""

    def __init__(self) -> None:
        self.step, self.logged, self.exit_codes = 0, list[tuple[int, float]](), list[int]()

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        assert step is not None and step >= self.step
        self.step = step
        if "train/loss" in data:
            self.logged.append((step, data["train/loss"]))

    def finish(self, exit_code: int | None = None) -> None:
        assert exit_code is not None
        self.exit_codes.append(exit_code)
        self.step += 1


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, _WandbRun]:
    runs: dict[str, _WandbRun] = {}

    def init(*, id: str, resume: str, config: dict[str, Any], settings: Any, **more: Any) -> Any:
        assert resume == "allow"
        assert config == CONTENT
        assert (settings.console, settings.disable_git) == ("off", True)
        assert set(more) == {"project", "entity", "mode", "name", "dir", "save_code"}
        return runs.setdefault(id, _WandbRun())

    module = ModuleType("wandb")
    module.init, module.Settings = init, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def _run(output: Path, steps_done: int) -> TrackedRun:
    return TrackedRun("digits", CONTENT, output, steps_done)


def _wandb(output: Path, steps_done: int) -> Sink:
    return WeightsAndBiases("project", None, "offline", _run(output, steps_done))


def _interrupted(open_sink: Any, output: Path) -> None:
    """Train 4 steps, of which the second runs twice; resume from the third, and go on to 6."""
    sink = open_sink(output, 0)
    for step in (0, 1, 2):
        sink.add_step(measures(step))
    sink.add_evaluation(evaluation(3))
    sink.rewind(1)
    for step in (1, 2, 3):
        sink.add_step(measures(step, loss=9.0))
    sink.close(ok=False)
    sink = open_sink(output, 2)
    for step in range(2, 6):
        sink.add_step(measures(step, loss=float(step)))
    sink.close(ok=True)


_SHOWN = [(0, 1.0), (1, 1.0), (2, 1.0), (3, 9.0), (4, 4.0), (5, 5.0)]


def test_wandb_is_told_every_step_once(wandb_runs: dict[str, _WandbRun], tmp_path: Path) -> None:
    _interrupted(_wandb, tmp_path)
    ((run_id, run),) = wandb_runs.items()
    assert _run(tmp_path, 1).known_id("wandb") == run_id
    assert run.logged == _SHOWN
    assert run.exit_codes == [1, 0]


def test_a_new_run_is_another_one_at_wandb(
    wandb_runs: dict[str, _WandbRun], tmp_path: Path
) -> None:
    for _ in range(2):
        _wandb(tmp_path, 0).close(ok=True)
    assert len(wandb_runs) == 2


class _MlflowServer:
    """What a tracking server has."""

    def __init__(self) -> None:
        self.experiments: list[str] = []
        self.parameters: dict[str, dict[str, str]] = {}
        self.metrics: dict[str, list[Any]] = {}
        self.status: dict[str, str] = {}


class _MlflowClient:
    def __init__(self, server: _MlflowServer) -> None:
        self._server = server

    def get_experiment_by_name(self, name: str) -> Any:
        found = name in self._server.experiments
        return SimpleNamespace(experiment_id=name) if found else None

    def create_experiment(self, name: str) -> str:
        self._server.experiments.append(name)
        return name

    def create_run(self, experiment_id: str, run_name: str | None = None) -> Any:
        assert experiment_id in self._server.experiments
        run_id = f"{run_name}-{len(self._server.metrics)}"
        self._server.metrics[run_id], self._server.parameters[run_id] = [], {}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        self._server.metrics[run_id] += metrics
        self._server.parameters[run_id] |= {each.key: each.value for each in params}

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [each for each in self._server.metrics[run_id] if each.key == key]

    def update_run(self, run_id: str, status: str | None = None) -> None:
        self._server.status[run_id] = str(status)

    def set_terminated(self, run_id: str, status: str | None = None) -> None:
        self._server.status[run_id] = str(status)


@pytest.fixture
def mlflow_server(monkeypatch: pytest.MonkeyPatch) -> _MlflowServer:
    server = _MlflowServer()
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.MlflowClient = lambda tracking_uri: _MlflowClient(server)  # type: ignore[attr-defined]
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(  # type: ignore[attr-defined]
        key=key, value=value, step=step
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return server


def _mlflow(output: Path, steps_done: int) -> Sink:
    return MlflowRun("experiment", None, _run(output, steps_done))


def test_mlflow_is_told_every_step_once(mlflow_server: _MlflowServer, tmp_path: Path) -> None:
    _interrupted(_mlflow, tmp_path)
    ((run_id, metrics),) = mlflow_server.metrics.items()
    losses = [(each.step, each.value) for each in metrics if each.key == "train/loss"]
    assert losses == _SHOWN
    assert [each.step for each in metrics if each.key == "evaluation/loss"] == [2]
    assert mlflow_server.parameters[run_id] == {
        "name": "digits",
        "train.steps": "3",
        "train.lr": "0.1",
    }
    assert mlflow_server.status[run_id] == "FINISHED"


def test_runs_of_one_experiment_share_it(mlflow_server: _MlflowServer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        _mlflow(tmp_path / name, 0).close(ok=True)
    assert mlflow_server.experiments == ["experiment"]
    assert len(mlflow_server.metrics) == 2


def test_the_real_mlflow_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'disagg_train[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = f"file://{tmp_path}/server"
    _interrupted(
        lambda output, done: MlflowRun("experiment", address, _run(output, done)),
        tmp_path,
    )
    history = mlflow.MlflowClient(address).get_metric_history(
        _run(tmp_path, 1).known_id("mlflow"), "train/loss"
    )
    assert [(each.step, each.value) for each in history] == _SHOWN


def test_the_real_wandb_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install 'disagg_train[wandb]'")
    secret = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    _interrupted(_wandb, tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert not [path for path in written if secret.encode() in path.read_bytes()]
