"""An LLM on gloo ranks, each a process, without Ray: their world, their batches, their norm."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from disagg_train.topology.grid import Grid

if TYPE_CHECKING:
    from disagg_train.engine.stage import Stage
    from disagg_train.modules.batch import LanguageBatch

VOCABULARY = 64
DEADLINE_S = 60.0


@contextmanager
def world(rank: int, size: int, file: Path) -> Iterator[None]:
    """Return a context in which this process is a rank of the default world."""
    import torch.distributed as dist

    timeout = timedelta(seconds=DEADLINE_S)
    dist.init_process_group("gloo", f"file://{file}", timeout, size, rank)
    yield
    dist.destroy_process_group()


def whole_norm(stages: "Sequence[Stage]") -> float:
    """Return the gradient norm over all ranks, as ``engine.agreement`` does."""
    import torch
    import torch.distributed as dist

    squared = sum(stage.optimizer.squared_norm() for stage in stages)
    total = torch.tensor([squared], dtype=torch.float64)
    dist.all_reduce(total)
    return math.sqrt(total.item())


def sample(length: int) -> list[int]:
    """Return the tokens of a sample, a different one for every length."""
    return [(position**2 * 5 + length) % VOCABULARY for position in range(length)]


def lane_batch(
    lengths: Sequence[int], grid: Grid, dp_rank: int, cp_rank: int, answer_tokens: int = 0
) -> "LanguageBatch":
    """Return a lane's samples, with padding alone where other lanes have more.

    Args:
        lengths: of the samples of all lanes; lanes take turns.
        grid: the module's ranks.
        dp_rank: of the lane.
        cp_rank: of the lane.
        answer_tokens: of every sample's end.
    """
    import torch

    from disagg_train.modules.attention import zigzag
    from disagg_train.modules.batch import LanguageBatch

    mine = lengths[dp_rank :: grid.dp]
    shape = (math.ceil(len(lengths) / grid.dp), 4 * math.ceil(max(lengths) / 4))
    tokens, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    for row, length in enumerate(mine):
        tokens[row, :length] = torch.tensor(sample(length))
        labels[row, : length - 1] = tokens[row, 1:length]
    held = zigzag(shape[1], grid.cp, torch.device("cpu"))
    starts = torch.arange(shape[0]) * shape[1]
    positions = (starts[None, :, None] + held[:, None, :]).flatten(1)
    ends = [row * shape[1] + length for row, length in enumerate(mine)]
    answers = tuple((end - answer_tokens, end) for end in ends)
    here = held[cp_rank]
    return LanguageBatch(tokens[:, here], labels[:, here], None, {}, positions, answers)
