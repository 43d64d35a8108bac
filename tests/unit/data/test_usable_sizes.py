"""What the job cannot take is found in a table of sizes as in a list, and its weights stay."""

from collections.abc import Sequence

import numpy as np
import pytest

from disagg_train.config.load import load_job
from disagg_train.data.index import usable_sizes
from disagg_train.data.sizes import InputSizes, SizeTable
from disagg_train.errors import DataError
from disagg_train.planner.step_plan import SampleSize

_GPT = {
    "num_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "ffn_hidden_size": 8,
    "vocab_size": 8,
}
_JOB = {
    "name": "a",
    "groups": {"all": {"ranks": 1}},
    "modules": {"language": {"kind": "gpt", "group": "all", "model": _GPT}},
    "train": {"steps": 1, "global_batch": 2, "optimizer": {"lr": 0.1}, "tokens_per_microbatch": 40},
}


class _Source:
    def __init__(self, sizes: Sequence[SampleSize]) -> None:
        self._sizes = sizes

    def sizes(self, split: str) -> Sequence[SampleSize]:
        return self._sizes


def _table() -> SizeTable:
    none = np.zeros(0, np.int32)
    return SizeTable(
        np.arange(4, dtype=np.uint64),
        np.array([5, 50, 40, 41], np.int32),
        np.ones(4, np.int32),
        np.array([1.0, 2.0, 3.0, 4.0]),
        np.zeros(5, np.int64),
        InputSizes(none.astype(np.int16), none, none, none),
        (),
    )


def test_too_long_samples_leave_a_table_and_the_others_keep_their_weights() -> None:
    job = load_job(_JOB | {"data": {"on_bad_sample": "skip"}})
    sizes, bad = usable_sizes(_Source(_table()), job, "train")
    listed, same = usable_sizes(_Source(list(_table())), job, "train")
    assert isinstance(sizes, SizeTable)
    assert list(sizes) == list(listed)
    assert sizes.weights_N.tolist() == [1.0, 3.0]
    assert bad == same


def test_a_too_long_sample_of_a_table_ends_the_run() -> None:
    with pytest.raises(DataError, match="sample 1 has 50 tokens, which do not fit"):
        usable_sizes(_Source(_table()), load_job(_JOB), "train")
