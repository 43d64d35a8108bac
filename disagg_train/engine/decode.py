"""Held-out evaluation of one microbatch: the teacher-forced loss, then greedy decoding.

The stream has room for the longest answer, so its layout stays what the step plan said and
each round is one forward of the whole stream; later positions cannot be seen by earlier ones.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from disagg_train.modules.batch import LanguageBatch
from disagg_train.modules.gpt import LanguageModel


@torch.no_grad()
def evaluate(
    model: LanguageModel, batch: LanguageBatch, inputs: Mapping[str, Tensor]
) -> tuple[float, list[list[int]]]:
    """Return the sum of token losses, and the generated tokens of every sample.

    Args:
        model: the LLM.
        batch: its stream, answers included; they are blanked before decoding.
        inputs: received rows per encoder.
    """
    loss = float(model(batch, inputs))
    answers = list(zip(batch.answer_starts, batch.answer_stops, strict=True))
    token_ids_BT = batch.token_ids_BT.clone()
    for start, stop in answers:
        token_ids_BT[0, start:stop] = 0
    batch = replace(batch, token_ids_BT=token_ids_BT)
    for offset in range(max(stop - start for start, stop in answers)):
        chosen_T = model.logits(batch, inputs).argmax(dim=-1)
        for start, stop in answers:
            if start + offset < stop:
                token_ids_BT[0, start + offset] = chosen_T[start + offset - 1]
    return loss, [token_ids_BT[0, start:stop].tolist() for start, stop in answers]
