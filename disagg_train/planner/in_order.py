"""Assignments that only count samples, or their tokens: what balancing starts from. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.planner.step_plan import Assignment, SampleSize
from disagg_train.topology.stream import Cut


def split_evenly(indices: Sequence[int], parts: int) -> tuple[tuple[int, ...], ...]:
    """Cut ``indices`` into ``parts`` contiguous runs whose lengths differ by at most one."""
    bounds = [len(indices) * part // parts for part in range(parts + 1)]
    return tuple(tuple(indices[a:b]) for a, b in zip(bounds, bounds[1:], strict=False))


def in_order(num_samples: int, num_microbatches: int, dp: int) -> Assignment:
    """Assign samples in sampler order, by count alone.

    Args:
        num_samples: samples of the global batch.
        num_microbatches: microbatches of the step.
        dp: data-parallel degree of the module; it need not divide anything.

    Returns:
        ``[microbatch][dp rank]`` -> sample indices.
    """
    microbatches = split_evenly(range(num_samples), num_microbatches)
    return tuple(split_evenly(microbatch, dp) for microbatch in microbatches)


@dataclass(frozen=True)
class TokenBudget:
    """Room for samples in the LLM's lanes, which none may go beyond.

    Args:
        tokens: most positions of a lane's packed stream, padding included.
        num_microbatches: microbatches of a step.
        dp: lanes of a microbatch.
        cut: how a lane's stream is cut over its ranks, which says how it is padded.
    """

    tokens: int
    num_microbatches: int
    dp: int
    cut: Cut = Cut()

    @property
    def room(self) -> int:
        """Positions that padded samples may fill; every stream is a multiple of the shortest."""
        unit = self.cut.stream((1,)).num_positions
        return self.tokens // unit * unit

    def padded(self, sample: SampleSize) -> int:
        """Return the positions that a sample takes."""
        return -(-sample.sequence_tokens // self.cut.chunks) * self.cut.chunks

    def assign(self, samples: Sequence[SampleSize]) -> Assignment:
        """Assign as many samples, from the first on, as the lanes have room for.

        Each goes to the lane that is filled least, so that lanes come out alike; the first
        sample without room there has none anywhere, and ends the step.

        Returns:
            ``[microbatch][dp rank]`` -> sample indices.
        """
        held: list[list[list[int]]] = [
            [[] for _ in range(self.dp)] for _ in range(self.num_microbatches)
        ]
        lanes = [(0, dp_rank, m) for dp_rank in range(self.dp) for m in range(len(held))]
        heapify(lanes)
        room = self.room
        for index, sample in enumerate(samples):
            filled, dp_rank, microbatch = lanes[0]
            filled += self.padded(sample)
            if filled > room:
                break
            heapreplace(lanes, (filled, dp_rank, microbatch))
            held[microbatch][dp_rank].append(index)
        return tuple(tuple(tuple(lane) for lane in microbatch) for microbatch in held)

    def num_fitting(self, samples: Sequence[SampleSize]) -> int:
        """Return how many samples, from the first on, the lanes have room for."""
        return sum(len(lane) for microbatch in self.assign(samples) for lane in microbatch)


def token_budget(job: JobConfig) -> TokenBudget | None:
    """Return the budget of a job's steps, if it has one."""
    train, parallel = job.train, job.language.parallel
    if train.tokens_per_microbatch is None:
        return None
    cut = Cut(parallel.cp, parallel.tp if parallel.sequence_parallel else 1)
    return TokenBudget(train.tokens_per_microbatch, train.microbatches, parallel.dp, cut)


def alongside(language: Assignment, dp: int) -> Assignment:
    """Assign an encoder's samples: those of the LLM's microbatches, split evenly by count.

    Args:
        language: the LLM's assignment.
        dp: data-parallel degree of the encoder.
    """
    return tuple(
        split_evenly(sorted(i for lane in microbatch for i in lane), dp) for microbatch in language
    )


def by_count(job: JobConfig, num_samples: int, num_microbatches: int) -> dict[str, Assignment]:
    """Assign samples of all modules in sampler order, by count alone."""
    return {
        name: in_order(num_samples, num_microbatches, module.parallel.dp)
        for name, module in job.modules.items()
    }


def start_assignment(job: JobConfig, samples: Sequence[SampleSize]) -> dict[str, Assignment]:
    """Assign samples of all modules in sampler order, by count or within the token budget."""
    budget = token_budget(job)
    if budget is None:
        return by_count(job, len(samples), job.train.microbatches)
    language = budget.assign(samples)
    return {
        name: language if name == LANGUAGE else alongside(language, module.parallel.dp)
        for name, module in job.modules.items()
    }
