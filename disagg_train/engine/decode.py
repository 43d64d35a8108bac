"""Held-out evaluation of one microbatch: the teacher-forced loss, then greedy decoding.

The stream has room for the longest answer, so its layout stays what the step plan said and
each round is one forward of the whole stream; later positions cannot be seen by earlier ones.
Rows pass through the LLM's stages round after round, chosen tokens come back to all of them.
A rank may host several stages; with P pipeline ranks, stage k is on rank k % P.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from torch.distributed import ProcessGroup

from disagg_train.modules.batch import PREVIOUS_STAGE, LanguageBatch
from disagg_train.modules.gpt import LanguageModel


@torch.no_grad()
def evaluate(
    stages: Sequence[LanguageModel], batch: LanguageBatch, inputs: Mapping[str, Tensor]
) -> tuple[float, list[list[int]]]:
    """Return the sum of this rank's token losses, and the generated tokens of every sample.

    All ranks of a lane must call this (and all lanes where experts span them). Only the last
    stage has losses; every rank returns all tokens.

    Args:
        stages: this rank's stages of the LLM, upstream first.
        batch: its sequences, answers included; they are blanked before decoding.
        inputs: received rows per encoder.
    """
    groups = stages[-1].groups
    loss = _through_stages(stages, LanguageModel.forward, batch, inputs)
    tokens_T = _whole_stream(groups.cp, batch, batch.token_ids_BS.flatten())
    for start, stop in batch.answers:
        tokens_T[start:stop] = 0
    for offset in range(_num_rounds(groups, batch)):
        round_batch = batch.with_tokens(tokens_T, groups.cp.rank())
        chosen_T = _chosen(stages, round_batch, inputs)
        for start, stop in batch.answers:
            if start + offset < stop:
                tokens_T[start + offset] = chosen_T[start + offset - 1]
    answers = [tokens_T[start:stop].tolist() for start, stop in batch.answers]
    return (float(loss) if stages[-1].is_last else 0.0), answers


def _num_rounds(groups: ProcessGroupCollection, batch: LanguageBatch) -> int:
    """Return the longest answer's length; of all lanes where they compute together."""
    rounds = torch.tensor(max((stop - start for start, stop in batch.answers), default=0))
    if groups.ep.size() > 1:
        rounds = rounds.to(batch.token_ids_BS.device)
        dist.all_reduce(rounds, dist.ReduceOp.MAX, group=groups.intra_dist_opt)
    return int(rounds)


def _chosen(
    stages: Sequence[LanguageModel], batch: LanguageBatch, inputs: Mapping[str, Tensor]
) -> Tensor:
    """Return the likeliest token after every position of the full stream, on every stage."""
    found, groups = _through_stages(stages, LanguageModel.logits, batch, inputs), stages[-1].groups
    if stages[-1].is_last:
        mine_T = found.argmax(dim=-1)
    else:
        mine_T = torch.empty_like(batch.token_ids_BS).flatten()
    if groups.pp.size() > 1:
        dist.broadcast(mine_T, group_src=groups.pp.size() - 1, group=groups.pp)
    return _whole_stream(groups.cp, batch, mine_T)


def _whole_stream(cp: ProcessGroup, batch: LanguageBatch, mine_T: Tensor) -> Tensor:
    """Return a value per position of the full stream, from every cp rank's values."""
    parts = [torch.empty_like(mine_T) for _ in range(cp.size())]
    if cp.size() > 1:
        dist.all_gather(parts, mine_T.contiguous(), group=cp)
    else:
        parts = [mine_T]
    whole_T = torch.empty_like(torch.cat(parts))
    whole_T[batch.positions_RT.flatten()] = torch.cat(parts)
    return whole_T


def _through_stages(
    stages: Sequence[LanguageModel],
    run: Callable[[LanguageModel, LanguageBatch, Mapping[str, Tensor]], Tensor],
    batch: LanguageBatch,
    inputs: Mapping[str, Tensor],
) -> Tensor:
    """Run each of this rank's stages between the one before and the one after it.

    Returns:
        What the last of them gives.
    """
    pp = stages[-1].groups.pp
    for model in stages:
        if not model.is_first:
            rows_TD = model.empty_rows(batch)
            dist.recv(rows_TD, group_src=(pp.rank() - 1) % pp.size(), group=pp)
            inputs = {PREVIOUS_STAGE: rows_TD}
        found = run(model, batch, inputs)
        if not model.is_last:
            dist.send(found.contiguous(), group_dst=(pp.rank() + 1) % pp.size(), group=pp)
    return found
