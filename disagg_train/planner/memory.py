"""What ranks hold in memory beside activations, by the sizes of the model. Pure.

**State**, as ``engine/optimizer.py`` keeps it: every weight in the job's precision; of trained ones
a gradient in fp32 (``grad_reduce_in_fp32``); and of the rank's part of them two averages of Adam's
in fp32, with an fp32 copy where the weights are not fp32 themselves. A part is one of dp * cp (of
experts dp * cp / ep): Megatron's distributed optimizer. Frozen weights have neither, and neither
have those beside LoRA's additions. Padding of the gradients' buckets is left out.

**Passing** memory lives inside one op or one exchange: messages, of which two are on their way out
and one is awaited per edge and direction; the gradients of a layer's values; a layer that is
computed again; logits, of which the loss has a copy in fp32, and their gradients. It is no part
of what a schedule keeps (``simulate``'s peak).
"""

from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.modules import CustomModule, EncoderModule
from disagg_train.planner.collectives import FP32_BYTES
from disagg_train.planner.stage_parts import (
    VALUE_BYTES,
    Module,
    Part,
    known_module,
    layer_part,
    of_stages,
)
from disagg_train.schedule.ops import MOST_SENDS

_AVERAGES = 2
_MESSAGES = MOST_SENDS + 1
"""Of an edge: rows that leave and gradients that are awaited, or the other way round."""


def state_bytes(job: JobConfig) -> dict[str, tuple[float, ...]]:
    """Return the bytes of weights, gradients and optimizer state on one rank of every stage.

    Returns:
        By module, in the order of its stages in the stage graph; a rank that hosts several
        (``vpp``, colocated modules) holds the sum. Zero for encoders of a class of one's own, of
        which nothing is known.
    """
    return {name: module_state_bytes(job, name) for name in job.modules}


def module_state_bytes(job: JobConfig, name: str) -> tuple[float, ...]:
    """Return the same of one module."""
    if isinstance(job.modules[name], CustomModule):
        return _nothing_known(job, name)
    module, value_bytes = known_module(job, name), VALUE_BYTES[job.train.precision]
    return of_stages(
        job, module, lambda parts: sum(_part_bytes(part, module, value_bytes) for part in parts)
    )


def passing_bytes_per_token(job: JobConfig) -> dict[str, tuple[float, ...]]:
    """Return the bytes that a rank of every stage needs for a while, per token of its lane.

    An upper bound: rows of encoders are counted as if each token of the LLM were one, and all
    exchanges as if they met the largest op.

    Returns:
        As ``state_bytes`` does; to be multiplied with the tokens of the largest microbatch on one
        dp rank. A rank that hosts several stages needs the largest.
    """
    return {name: _passing(job, name) for name in job.modules}


def _nothing_known(job: JobConfig, name: str) -> tuple[float, ...]:
    return (0.0,) * job.modules[name].parallel.pp


def _part_bytes(part: Part, module: Module, value_bytes: int) -> float:
    parallel = module.parallel
    lanes = parallel.dp * parallel.cp
    dense, experts = part.dense_of_rank(parallel), part.experts_of_rank(parallel)
    weights = (dense + experts) * value_bytes
    if not part.trained:
        return weights
    copies = 0 if value_bytes == FP32_BYTES else 1
    shard = dense / lanes + experts / (lanes // parallel.ep)
    return weights + FP32_BYTES * (dense + experts + (_AVERAGES + copies) * shard)


def _passing(job: JobConfig, name: str) -> tuple[float, ...]:
    if isinstance(job.modules[name], CustomModule):
        return _nothing_known(job, name)
    module, value_bytes = known_module(job, name), VALUE_BYTES[job.train.precision]
    parallel = module.parallel
    ranks = parallel.cp * (parallel.tp if parallel.sequence_parallel else 1)
    layers = 2 if module.recompute == "full" else 1
    inside = value_bytes * layers * layer_part(module).kept_by_rank(parallel)
    last = parallel.pp * parallel.vpp - 1
    found = []
    for index in range(last + 1):
        messages = _MESSAGES * value_bytes * _row_values(job, name, index, last) / ranks
        has_logits = name == LANGUAGE and index == last
        logits = _logits_bytes(job, value_bytes) if has_logits else 0.0
        found.append(messages + max(inside, logits))
    return tuple(found)


def _row_values(job: JobConfig, name: str, index: int, last: int) -> float:
    """Return the width of the rows of all of a stage's edges, per token."""
    module = known_module(job, name)
    width = module.model.hidden_size
    values = float(width * ((index > 0) + (index < last)))
    if isinstance(module, EncoderModule) and index == last:
        values += job.language.model.hidden_size / module.projector.merge
    if name == LANGUAGE and index == 0 and job.encoders:
        values += width
    return values


def _logits_bytes(job: JobConfig, value_bytes: int) -> float:
    """Return the bytes of a token's logits and of their gradients, in both precisions."""
    language = job.language
    per_logit = 2 * value_bytes + (0 if value_bytes == FP32_BYTES else 2 * FP32_BYTES)
    parallel = language.parallel
    return language.model.vocab_size * per_logit / (parallel.tp * parallel.cp)
