"""1F1B: every stage warms up with one forward per stage that follows it, then alternates.

    stage 0     F0 F1 B0 F2 B1 F3 B2 B3
    stage 1        F0 B0 F1 B1 F2 B2 F3 B3

GPipe warms up with all forwards: the simplest schedule, and the one that holds the most.
"""

from collections.abc import Sequence

from disagg_train.schedule.passes import Passes, alternate, backward, forward


def one_f_one_b(stage: str, microbatches: Sequence[int], stages_after: int) -> Passes:
    """Return a stage's passes.

    Args:
        stage: its name.
        microbatches: numbers of the microbatches, ascending.
        stages_after: stages that follow on the longest path.
    """
    forwards = [forward(stage, microbatch) for microbatch in microbatches]
    backwards = [backward(stage, microbatch) for microbatch in microbatches]
    return alternate(forwards, backwards, stages_after)


def gpipe(stage: str, microbatches: Sequence[int]) -> Passes:
    """Return a stage's passes: all forwards, then all backwards."""
    return one_f_one_b(stage, microbatches, len(microbatches))
