"""Activations that wait for backwards: as many microbatches as the schedule says, in bytes."""

from itertools import islice

import pytest

from actors.pool import ActorPool
from disagg_train.boundary.of_job import job_graph
from disagg_train.config.load import load_job
from disagg_train.data.index import checked_sizes
from disagg_train.data.sampler import batches
from disagg_train.data.source import open_source
from disagg_train.driver import loop
from disagg_train.driver.plans import training_plans
from disagg_train.schedule.ops import Schedule
from tests.parity.jobs import small_job

pytestmark = pytest.mark.ray

_MICROBATCHES = 4
_EQUAL_SAMPLES = ["data.options.max_digits=1", "data.options.text_only=0"]


def peaks_of(pool: ActorPool, *overrides: str) -> tuple[Schedule, dict[str, int]]:
    """Return a job's schedule, and the peak bytes of every stage: each has a rank of its own."""
    base = small_job({}, {"pp": 2}, microbatches=_MICROBATCHES, global_batch=8)
    job = load_job(base, [*_EQUAL_SAMPLES, *overrides])
    sizes = checked_sizes(open_source(job), job, "train")
    plans = islice(training_plans(job, batches(sizes, job.seed, job.train.global_batch)), 2)
    with pool.session(job) as session:
        *_, (_, reports) = loop.train(session.groups, plans, job.deadlines.step_s)
    stage_at = {min(node.places): name for name, node in job_graph(job).nodes.items()}
    peaks = {stage_at[report.place]: report.peak_activation_bytes for report in reports}
    return session.schedule, peaks


def test_every_stage_keeps_as_many_microbatches_as_its_schedule_says(pool: ActorPool) -> None:
    _, all_kept = peaks_of(pool, "train.schedule=gpipe")
    schedule, peaks = peaks_of(pool)
    for stage, peak in peaks.items():
        share = schedule.in_flight[stage] / _MICROBATCHES
        assert peak == pytest.approx(share * all_kept[stage], rel=0.02), stage
    assert sum(peaks.values()) < 0.6 * sum(all_kept.values())


def test_a_split_backward_lets_go_of_all_but_the_inputs_of_matrices(pool: ActorPool) -> None:
    _, all_kept = peaks_of(pool, "train.schedule=gpipe")
    schedule, peaks = peaks_of(pool, "train.schedule=zero_bubble")
    for stage, peak in peaks.items():
        share = schedule.in_flight[stage] / _MICROBATCHES
        assert peak <= 1.02 * share * all_kept[stage], stage
    assert peaks["language.1"] < 0.9 * share * all_kept["language.1"]


def test_recomputing_layers_keeps_a_fraction(pool: ActorPool) -> None:
    _, kept = peaks_of(pool)
    _, computed_again = peaks_of(pool, "modules.language.recompute=full")
    assert computed_again["vision"] == kept["vision"]
    assert computed_again["language.0"] < 0.7 * kept["language.0"]
