"""Encoders that take the samples of several microbatches at once. Pure.

An encoder with more dp ranks than a microbatch has samples leaves some of them idle. Colocated, it
runs through a window of microbatches before the LLM begins, so it loses nothing by computing the
samples of a whole *run* of microbatches in the first of them; the LLM takes its own later, within
``train.deferral_span``.
"""

from disagg_train.config.base import divisors
from disagg_train.config.job import JobConfig


def run_of(dp: int, samples_per_microbatch: float, within: int) -> int:
    """Return how many microbatches a run has: the fewest that leave no dp rank idle.

    Args:
        dp: replicas of the encoder.
        samples_per_microbatch: of the LLM's.
        within: microbatches that are whole runs; all of them where even these leave some idle.
    """
    enough = (run for run in divisors(within) if run * samples_per_microbatch >= dp)
    return next(enough, within)


def runs(job: JobConfig, num_samples: int) -> dict[str, int]:
    """Return every encoder's run in a job's steps, as long as it may be.

    It is 1 for encoders that have ranks of their own.

    Args:
        job: says the window, and how far the LLM may put samples off.
        num_samples: of the step.
    """
    train = job.train
    window = min(train.window or train.microbatches, train.microbatches)
    found = {}
    for name, encoder in job.encoders.items():
        wanted = run_of(encoder.parallel.dp, num_samples / train.microbatches, window)
        most = min(wanted, train.deferral_span + 1)
        shared = encoder.group == job.language.group
        found[name] = max(run for run in divisors(window) if run <= most) if shared else 1
    return found
