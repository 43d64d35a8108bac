"""What ranks print is kept with the run, rank by rank, and the warm processes get it back."""

import ctypes
import os
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from actors.pool import ActorPool
from actors.session import Session
from disagg_train import trainer
from disagg_train.cli import main
from tests.ray.jobs import job_with

pytestmark = pytest.mark.ray

JOB = job_with("train.steps=2")
WAIT_S = 60.0
RANKS = [("encoders", 0), ("encoders", 1), ("language", 0), ("language", 1)]


def _write(actor: Any, mark: str) -> None:
    del actor
    print(f"printed {mark}")
    os.write(2, f"written {mark}\n".encode())
    ctypes.CDLL(None).puts(f"in C {mark}".encode())
    ctypes.CDLL(None).fflush(None)


def _have_all_write(session: Session, mark: str) -> list[Any]:
    actors = [actor for group in session.groups for actor in group.actors]
    calls = [actor.__ray_call__.remote(_write, f"{mark} {i}") for i, actor in enumerate(actors)]
    ray.get(calls, timeout=WAIT_S)
    return actors


def _kept(folder: Path) -> list[str]:
    return [(folder / f"{group}-{rank}.log").read_text() for group, rank in RANKS]


def test_each_ranks_output_is_in_its_file_while_it_has_the_job(
    pool: ActorPool, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with pool.session(JOB, logs=first) as session:
        assert session.take_note() == ""
        _have_all_write(session, "of the first")
        session.renew(JOB, (), None)
        actors = _have_all_write(session, "once more")
    with pool.session(JOB, logs=second) as session:
        assert set(_have_all_write(session, "of the second")) == set(actors)
    ray.get([actor.__ray_call__.remote(_write, "of no job") for actor in actors], timeout=WAIT_S)
    for place, (group, rank) in enumerate(RANKS):
        mine, other = _kept(first)[place], _kept(second)[place]
        for how in ("printed", "written", "in C"):
            assert mine.count(f"{how} of the first {place}\n") == 1
            assert mine.count(f"{how} once more {place}\n") == 1
            assert other.count(f"{how} of the second {place}\n") == 1
        assert mine.count("==== ") == 2
        assert mine.count(f"group={group} rank={rank} step=0 set up") == 2
        assert "of the second" not in mine and "of no job" not in mine + other


def test_ranks_that_cannot_write_are_named_once_and_train_all_the_same(
    pool: ActorPool, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pool.session(JOB, logs=tmp_path / "file" / "logs") as session:
        note = session.take_note()
        assert note.startswith("Ray keeps the output of ranks that cannot write it: ")
        assert note.endswith("encoders-0.log: Not a directory and 3 more")
        session.renew(JOB, (), None)
        assert session.take_note() == ""


def test_a_run_logs_every_step_and_rank_and_tells_of_them_when_asked_to(
    pool: ActorPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trainer, "on_cluster", pool.session)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    job = job_with("train.steps=2", "train.evaluation.samples=0", "output=run")
    Path("job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json")))
    assert main(["train", "job.yaml", "-v"]) == 0
    lines = (tmp_path / "run" / "run.log").read_text().splitlines()
    told = capsys.readouterr().out
    wanted = [f"group={group} rank={rank} step=0 set up on node " for group, rank in RANKS]
    wanted += [f"group=- rank=- step={step} done in " for step in range(2)]
    wanted += ["group=- rank=- step=2 checkpoint "]
    for text in wanted:
        (line,) = [line for line in lines if text in line]
        assert line in told
    assert all(" INFO group=" in line for line in lines)
    assert all("set up" in text for text in _kept(tmp_path / "run" / "logs"))
