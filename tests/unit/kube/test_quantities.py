"""Ranks dealt out to pods."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.errors import ConfigError
from disagg_train.kube.quantities import share_on_cpus, share_on_gpus, times

counts = st.integers(1, 64)


@given(counts, st.sampled_from([1.0, 0.5, 0.3, 0.25, 0.1]), st.integers(1, 8))
def test_pods_hold_all_ranks_and_no_more_gpus_than_a_node(
    ranks: int, gpus_per_rank: float, gpus_per_node: int
) -> None:
    try:
        share = share_on_gpus("g", ranks, gpus_per_rank, gpus_per_node)
    except ConfigError:
        assert ranks % min(ranks, gpus_per_node * int(1 / gpus_per_rank))
        return
    assert share.pods * share.ranks == ranks
    assert share.ranks * gpus_per_rank <= share.gpus + 1e-6 <= gpus_per_node + 1e-6
    assert (share.gpus - 1) * int(1 / gpus_per_rank) < share.ranks


@given(counts, counts)
def test_the_way_out_of_pods_that_are_not_alike_is_one(ranks: int, ranks_per_node: int) -> None:
    try:
        share = share_on_cpus("g", ranks, ranks_per_node)
    except ConfigError as error:
        listed = str(error).partition("one of [")[2].partition("]")[0]
        for fitting in map(int, listed.split(", ")):
            assert share_on_cpus("g", ranks, fitting).ranks == fitting
        return
    assert (share.pods * share.ranks, share.gpus) == (ranks, 0)
    assert share.ranks <= ranks_per_node


@pytest.mark.parametrize(
    ("memory", "count", "total"), [("16Gi", 8, "128Gi"), ("500M", 3, "1500M"), ("7", 2, "14")]
)
def test_memory_is_multiplied_in_its_own_unit(memory: str, count: int, total: str) -> None:
    assert times(memory, count) == total


@pytest.mark.parametrize(("gpus_per_node", "pods"), [(2, 6), (4, 3), (12, 1)])
def test_pods_hold_whole_tp_groups_or_even_parts_of_one(gpus_per_node: int, pods: int) -> None:
    assert share_on_gpus("g", 12, 1.0, gpus_per_node, tp=4).pods == pods


def test_pods_that_would_cut_a_tp_group_unevenly_are_refused() -> None:
    for gpus_per_node in (3, 6, 8):
        with pytest.raises(ConfigError, match=r"whole tp groups of 4 .*one of \[1, 2, 4, 12\]"):
            share_on_gpus("g", 12, 1.0, gpus_per_node, tp=4)
