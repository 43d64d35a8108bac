"""Which actor becomes which rank: properties of the order."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from actors.agent import Home
from actors.numbering import rank_order


def _home(node: int, gpu: int | None = None, pid: int = 0) -> Home:
    gpus = () if gpu is None else (str(gpu),)
    return Home(f"id-{node}", f"10.0.0.{node}", pid, 0, 0, gpus)


@st.composite
def clusters(draw: st.DrawFn, of: int = 1) -> list[Home]:
    """Draw the homes of a group whose nodes each hold whole groups of ``of`` ranks on GPUs."""
    nodes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5, unique=True))
    counts = [draw(st.integers(1, 4)) * of for _ in nodes]
    homes = [_home(node, gpu) for node, n in zip(nodes, counts, strict=True) for gpu in range(n)]
    return draw(st.permutations(homes))


def _in_order(homes: list[Home], before: list[Home] | None = None) -> list[Home]:
    return [homes[i] for i in rank_order(homes, before or [])]


@given(clusters(), st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_the_order_in_which_actors_started(homes, random) -> None:
    shuffled = homes[:]
    random.shuffle(shuffled)
    assert _in_order(homes) == _in_order(shuffled)


@given(clusters())
def test_every_actor_becomes_one_rank(homes: list[Home]) -> None:
    assert sorted(rank_order(homes)) == list(range(len(homes)))


@given(clusters(of=4), st.sampled_from([1, 2, 4]))
def test_a_tp_group_never_leaves_its_node(homes: list[Home], tp: int) -> None:
    ordered = _in_order(homes)
    for first in range(0, len(ordered), tp):
        assert len({home.node_id for home in ordered[first : first + tp]}) == 1


@given(clusters())
def test_ranks_of_a_node_are_neighbours_and_go_by_its_gpus(homes: list[Home]) -> None:
    ordered = _in_order(homes)
    changes = sum(a.node_id != b.node_id for a, b in pairwise(ordered))
    assert changes + 1 == len({home.node_id for home in homes})
    for a, b in pairwise(ordered):
        assert a.node_id != b.node_id or int(a.gpus[0]) < int(b.gpus[0])


@given(clusters(), st.randoms(use_true_random=False))
def test_a_restart_on_the_same_nodes_changes_no_rank(homes, random) -> None:
    before = _in_order(homes)
    anew = [Home(h.node_id, h.address, 77, 0, 0, h.gpus) for h in homes]
    random.shuffle(anew)
    places = [(home.node_id, home.gpus) for home in before]
    assert [(home.node_id, home.gpus) for home in _in_order(anew, before)] == places


@given(clusters(), st.data())
def test_a_new_node_takes_the_ranks_of_the_lost_one(homes: list[Home], data: st.DataObject) -> None:
    before = _in_order(homes)
    lost = data.draw(st.sampled_from(before)).node_id
    new = [_home(99, int(h.gpus[0])) if h.node_id == lost else h for h in before]
    found = _in_order(data.draw(st.permutations(new)), before)
    for old, now in zip(before, found, strict=True):
        assert now.node_id == ("id-99" if old.node_id == lost else old.node_id)


def test_addresses_and_gpus_go_by_their_numbers() -> None:
    homes = [_home(10, 2), _home(10, 11), _home(9, 0)]
    assert rank_order(homes) == [2, 0, 1]


def test_ranks_on_cpus_keep_the_order_of_their_bundles() -> None:
    homes = [_home(2, pid=1), _home(1, pid=2), _home(2, pid=3), _home(1, pid=4)]
    assert rank_order(homes) == [1, 3, 0, 2]


def test_nodes_without_addresses_have_an_order_too() -> None:
    homes = [Home("b", "", 0, 0, 0), Home("a", "", 0, 0, 0)]
    assert rank_order(homes) == [1, 0]
