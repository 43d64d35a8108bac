"""Vaults together hold every rank's state, and give it back in any layout."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from actors import courier as courier_of
from actors import vault_source
from actors.courier import Courier
from actors.vault import Owner, Vault, Version
from actors.vault_source import VaultSource
from actors.vaults import newest_complete
from disagg_train.checkpoint.sharded import Chunk, ModuleState, Snapshot
from disagg_train.errors import ClusterError

NUM_RANKS = 3
OWNERS: list[Owner] = [("encoders", 0), ("encoders", 1), ("language", 0)]


class Call:
    """A method of an actor that runs here and at once."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> Any:
        try:
            return SimpleNamespace(value=self._method(*arguments), error=None)
        except Exception as error:
            return SimpleNamespace(value=None, error=vault_source.RayError(str(error)))


class Here:
    """A vault in this process."""

    def __init__(self) -> None:
        self.vault = Vault.__ray_metadata__.modified_class()

    def __getattr__(self, name: str) -> Call:
        return Call(getattr(self.vault, name))


class Broken:
    """A vault whose process is gone."""

    def __getattr__(self, name: str) -> Call:
        def gone(*_: object) -> None:
            raise OSError("gone")

        return Call(gone)


@pytest.fixture(autouse=True, scope="module")
def ray_here() -> Any:
    """Let calls be their own results."""

    def get(calls: Any, timeout: float) -> Any:
        del timeout
        if isinstance(calls, list):
            return [get(call, 0) for call in calls]
        if calls.error is not None:
            raise calls.error
        return calls.value

    context = SimpleNamespace(get_node_id=lambda: "b")
    ray = SimpleNamespace(
        get=get,
        put=lambda value: value,
        wait=lambda calls, **_: (calls, []),
        get_runtime_context=lambda: context,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vault_source, "ray", ray)
        patch.setattr(courier_of, "ray", ray)
        yield


def couriers(vaults: Sequence[Any], epoch: int = 1) -> list[Courier]:
    """Return one per rank; each has its own vault and the next one."""
    return [
        Courier(
            (vaults[i % len(vaults)], vaults[(i + 1) % len(vaults)]), epoch, NUM_RANKS, *owner, 5.0
        )
        for i, owner in enumerate(OWNERS)
    ]


def snapshots(tensors: dict[str, Tensor], steps_done: int) -> list[Snapshot]:
    """Cut every tensor into rows for the ranks."""
    found = []
    for i in range(NUM_RANKS):
        chunks = []
        for name, full in tensors.items():
            per_rank = -(-len(full) // NUM_RANKS)
            rows = full[i * per_rank : (i + 1) * per_rank]
            if len(rows):
                offsets = (i * per_rank, *(0 for _ in full.shape[1:]))
                chunks.append(Chunk(name, tuple(full.shape), offsets, rows))
        found.append(Snapshot(steps_done, {"language": chunks}, {}))
    return found


DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64])


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    dtype=DTYPES,
    load_bytes=st.sampled_from([1, 100, 1 << 20]),
    data=st.data(),
)
def test_any_box_comes_back_as_it_was(
    shape: list[int], dtype: torch.dtype, load_bytes: int, data: st.DataObject
) -> None:
    full = torch.randn(shape).mul(100).to(dtype)
    vaults = [Here(), Here()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(courier_of, "_LOAD_BYTES", load_bytes)
        patch.setattr(vault_source, "_LOAD_BYTES", load_bytes)
        for courier, snapshot in zip(
            couriers(vaults), snapshots({"w": full, "b": full}, 7), strict=True
        ):
            courier.send(snapshot)
        source = VaultSource({"a": vaults[0], "b": vaults[1]}, (7, 1), 5.0)
        state = ModuleState(source.reader("language"), "the vaults")
        begin = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
        sizes = [data.draw(st.integers(1, n - o)) for n, o in zip(shape, begin, strict=True)]
        box = torch.zeros(sizes, dtype=dtype)
        state.fill([Chunk("w", tuple(shape), begin, box)])
    expected = full[tuple(slice(o, o + n) for o, n in zip(begin, sizes, strict=True))]
    assert torch.equal(box, expected)
    assert torch.equal(state.read("b"), full)
    assert source.steps_done == 7


def test_one_of_two_vaults_is_enough() -> None:
    sound, full = Here(), torch.arange(12.0)
    for courier, snapshot in zip(
        couriers([sound, Broken()]), snapshots({"w": full}, 2), strict=True
    ):
        courier.send(snapshot)
    assert newest_complete([sound.vault.held()]) == (2, 1)
    source = VaultSource({"a": sound}, (2, 1), 5.0)
    assert torch.equal(ModuleState(source.reader("language"), "").read("w"), full)


def test_where_no_vault_takes_a_state_that_is_said() -> None:
    courier, snapshot = couriers([Broken()])[0], snapshots({"w": torch.ones(3)}, 2)[0]
    with pytest.raises(ClusterError, match="no vault took the state of group 'encoders' rank 0"):
        courier.send(snapshot)


def test_a_vault_that_dies_while_it_is_read_is_an_error_of_the_cluster() -> None:
    source = VaultSource({"a": Broken()}, (2, 1), 5.0)
    with pytest.raises(ClusterError, match="a vault with the copies of step 2 did not answer"):
        ModuleState(source.reader("language"), "the vaults")


def test_a_vault_keeps_the_two_newest_steps_and_forgets_a_past_that_did_not_happen() -> None:
    here = Here()
    for steps_done in (2, 4, 6):
        for courier, snapshot in zip(
            couriers([here]), snapshots({"w": torch.ones(4)}, steps_done), strict=True
        ):
            courier.send(snapshot)
    assert set(here.vault.held()) == {(4, 1), (6, 1)}
    here.vault.begin(2, (4, 1))
    assert set(here.vault.held()) == {(4, 1)}
    couriers([here])[0].send(snapshots({"w": torch.ones(4)}, 6)[0])
    assert set(here.vault.held()) == {(4, 1)}, "what comes late from an earlier epoch is refused"
    here.vault.begin(3, None)
    assert here.vault.held() == {}


def test_copies_that_overtake_the_beginning_of_their_epoch_stay() -> None:
    here = Here()
    couriers([here], epoch=2)[0].send(snapshots({"w": torch.ones(4)}, 4)[0])
    here.vault.begin(2, None)
    assert set(here.vault.held()) == {(4, 2)}


HELD = st.dictionaries(
    st.tuples(st.integers(0, 4), st.integers(0, 2)),
    st.dictionaries(st.sampled_from(OWNERS), st.just(NUM_RANKS)),
    max_size=5,
)


@given(st.lists(HELD, max_size=3))
def test_the_newest_version_is_one_that_all_ranks_have(
    held: list[dict[Version, dict[Owner, int]]],
) -> None:
    complete = {
        version
        for vault in held
        for version in vault
        if {owner for each in held for owner in each.get(version, {})} == set(OWNERS)
    }
    assert newest_complete(held) == max(complete, default=None)
