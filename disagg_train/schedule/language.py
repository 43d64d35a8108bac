"""Which order the LLM's stages run their passes in."""

from collections.abc import Sequence
from typing import Literal, get_args

from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.interleaved import interleaved
from disagg_train.schedule.one_f_one_b import gpipe, one_f_one_b
from disagg_train.schedule.passes import Passes
from disagg_train.schedule.zero_bubble import zero_bubble

Pipeline = Literal["1f1b", "zero_bubble", "gpipe"]
"""A builder of passes; 1f1b is interleaved where ranks host several stages."""

PIPELINES: dict[str, Pipeline] = {name: name for name in get_args(Pipeline)}


def pipeline_name(graph: StageGraph, pipeline: Pipeline) -> str:
    """Return what people call the order."""
    shared = len(graph.stages_of_language(graph.language[0])) > 1
    return "interleaved 1f1b" if shared and pipeline == "1f1b" else pipeline


def language_passes(
    graph: StageGraph, pipeline: Pipeline, stages: Sequence[str], microbatches: Sequence[int]
) -> Passes:
    """Return the passes of a rank that hosts some stages of the LLM.

    Args:
        graph: the stage graph.
        pipeline: the builder.
        stages: the stages, upstream first.
        microbatches: numbers of the microbatches, ascending.
    """
    stage = stages[0]
    before = [node.name for node in graph.language].index(stage)
    if len(stages) > 1:
        return interleaved(stages, microbatches, before, len(graph.language) // len(stages))
    if pipeline == "zero_bubble":
        return zero_bubble(stage, microbatches, before, graph.stages_after(stage))
    if pipeline == "gpipe":
        return gpipe(stage, microbatches)
    return one_f_one_b(stage, microbatches, graph.stages_after(stage))
