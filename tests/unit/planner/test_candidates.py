"""Candidates: every grouping once, and job files that say what they say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.planner.candidates import Candidate, Team, partitions
from disagg_train.planner.shapes import Shape, shape_of, shapes
from tests.unit.planner.planned import small_job

_BELL = (1, 1, 2, 5, 15, 52)
"""In how many ways so many things can be grouped."""


@given(st.integers(0, 5))
def test_modules_are_grouped_in_every_way_once(count: int) -> None:
    names = [f"m{n}" for n in range(count)]
    found = list(partitions(names))
    grouped = {frozenset(frozenset(group) for group in groups) for groups in found}
    assert len(found) == len(grouped) == _BELL[count]
    assert all(sorted(sum(groups, ())) == names for groups in found)


@pytest.mark.parametrize("module", ["vision", LANGUAGE])
def test_every_shape_keeps_to_the_rules_of_jobs(module: str) -> None:
    job = small_job()
    found = shapes(job.modules[module], 16, 8)
    assert len(found) == len(set(found))
    for shape in found:
        own = {"vision": Shape(), LANGUAGE: Shape(), module: shape}
        teams = tuple(Team((name,), own[name].num_ranks) for name in own)
        assert Candidate(teams, own, 8 * shape.pp // shape.pp, 8).job(job) is not None or (
            shape.vpp > 1 and 8 % shape.pp
        )


def _candidate_of(job: JobConfig) -> Candidate:
    """Return the way in which a job is laid out."""
    train = job.train
    teams = tuple(
        Team(
            tuple(name for name, module in job.modules.items() if module.group == group),
            config.ranks,
            config.accelerator,
        )
        for group, config in job.groups.items()
    )
    return Candidate(
        teams,
        {name: shape_of(module) for name, module in job.modules.items()},
        train.microbatches,
        min(train.window or train.microbatches, train.microbatches),
        train.schedule,
        train.deferral_span,
    )


def test_a_jobs_own_layout_is_a_candidate() -> None:
    job = small_job(encoders=2)
    candidate = _candidate_of(job)
    assert candidate.placement == "disjoint"
    assert candidate.job(job) == candidate.unchecked(job)
    assert _candidate_of(candidate.unchecked(job)) == candidate


@pytest.mark.parametrize(
    ("groups", "placement"),
    [
        ((("vision", "audio", LANGUAGE),), "colocated"),
        ((("vision",), ("audio",), (LANGUAGE,)), "disjoint"),
        ((("vision", "audio"), (LANGUAGE,)), "mixed"),
        ((("audio",), ("vision", LANGUAGE)), "mixed"),
    ],
)
def test_a_placement_has_a_name(groups: tuple[tuple[str, ...], ...], placement: str) -> None:
    own = {name: Shape() for group in groups for name in group}
    assert Candidate(tuple(Team(g, 2) for g in groups), own, 4, 4).placement == placement


def test_a_laid_out_job_file_changes_only_the_layout() -> None:
    job = small_job()
    candidate = Candidate(
        (Team(("vision", LANGUAGE), 4),),
        {"vision": Shape(tp=2), LANGUAGE: Shape(tp=2, pp=2, recompute="full")},
        8,
        4,
        "zero_bubble",
    )
    laid_out = candidate.job(job)
    assert laid_out is not None
    assert set(laid_out.groups) == {"vision+language"}
    assert laid_out.modules["vision"].parallel.dp == 2
    assert (laid_out.train.window, laid_out.train.microbatches) == (4, 8)
    assert laid_out.train.optimizer == job.train.optimizer
    assert laid_out.language.model == job.language.model
    assert laid_out.data == job.data


def test_a_step_keeps_its_room_for_tokens() -> None:
    job = small_job(tokens_per_microbatch=1000)
    shape = {"vision": Shape(), LANGUAGE: Shape()}
    teams = Team(("vision",), 1), Team((LANGUAGE,), 2)
    laid_out = Candidate(teams, shape, 8, 8).unchecked(job)
    assert laid_out.train.tokens_per_microbatch == 250
    assert _room(laid_out) == _room(job)


def _room(job: JobConfig) -> int:
    assert job.train.tokens_per_microbatch is not None
    lanes = job.train.microbatches * job.language.parallel.dp
    return job.train.tokens_per_microbatch * lanes
