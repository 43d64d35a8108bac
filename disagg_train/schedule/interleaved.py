"""Interleaved 1F1B (VPP): a rank hosts several stages of the LLM and takes turns among them.

    rank 0      0F0 0F1 2F0 2F1 0F2 2B0 ...     stages 0 and 2; nFm is stage n, microbatch m
    rank 1          1F0 1F1 3F0 3B0 3F1 ...     stages 1 and 3

Microbatches pass in groups of as many as there are pipeline ranks: a group runs through a
rank's first stage, then through its second, and back in the other order. Stages are a
v-th as long as without interleaving, and so is the bubble.

Source: Narayanan et al., Efficient Large-Scale Language Model Training on GPU Clusters Using
Megatron-LM (arXiv 2104.04473), section 2.2.
"""

from collections.abc import Sequence

from disagg_train.schedule.passes import Passes, alternate, backward, forward


def interleaved(
    stages: Sequence[str], microbatches: Sequence[int], pp_rank: int, pp: int
) -> Passes:
    """Return the passes of a rank of the LLM.

    Args:
        stages: that the rank hosts, upstream first.
        microbatches: numbers of the microbatches, ascending; pp divides how many.
        pp_rank: the rank's place in the pipeline.
        pp: ranks of the pipeline.
    """
    groups = [microbatches[at : at + pp] for at in range(0, len(microbatches), pp)]
    forwards = [forward(s, m) for group in groups for s in stages for m in group]
    backwards = [backward(s, m) for group in groups for s in reversed(stages) for m in group]
    warmup = 2 * (pp - pp_rank - 1) + (len(stages) - 1) * pp
    return alternate(forwards, backwards, warmup)
