"""Which samples go to which microbatch and dp rank. Pure; the step's result never depends on it."""

from collections.abc import Sequence

from disagg_train.planner.step_plan import Assignment


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
