"""Zero-bubble, ZB-H1: backwards are split, and weight gradients fill what would be bubbles.

    stage 0     F0 F1 b0 w0 F2 b1 w1 F3 b2 w2 b3 w3       b: gradients of the received rows
    stage 1        F0 b0 F1 b1 w0 F2 b2 w1 F3 b3 w2 w3    w: of the weights

Each stage waits for the input gradients of the one after it, and for nothing else of its
backward. So a stage puts its weight gradients off by as many microbatches as stages come
before it; at the end, while these still run, it has them left to compute. No stage holds
more microbatches than the first does under 1F1B.

Source: Qi et al., Zero Bubble Pipeline Parallelism (arXiv 2401.10241), section 2.
"""

from collections.abc import Sequence

from disagg_train.schedule.ops import Op, OpKind
from disagg_train.schedule.passes import Passes, alternate, forward


def zero_bubble(
    stage: str, microbatches: Sequence[int], stages_before: int, stages_after: int
) -> Passes:
    """Return a stage's passes.

    Args:
        stage: its name.
        microbatches: numbers of the microbatches, ascending.
        stages_before: stages of the LLM before it.
        stages_after: stages that follow it.
    """
    forwards = [forward(stage, microbatch) for microbatch in microbatches]
    inputs = [Op(OpKind.BACKWARD_INPUT, stage, microbatch) for microbatch in microbatches]
    weights = [Op(OpKind.BACKWARD_WEIGHT, stage, microbatch) for microbatch in microbatches]
    passes: Passes = []
    for op in alternate(forwards, inputs, stages_after):
        passes.append(op)
        behind = op.microbatch - microbatches[0] - stages_before
        if op.kind is OpKind.BACKWARD_INPUT and behind >= 0:
            passes.append(weights[behind])
    return passes + weights[max(len(weights) - stages_before, 0) :]
