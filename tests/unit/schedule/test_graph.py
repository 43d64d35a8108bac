"""Module graphs: who feeds whom, who runs backward."""

from disagg_train.schedule.graph import Edge, ModuleGraph
from tests.unit.schedule.strategies import LANGUAGE, graph_of, mixed_graph, node


def test_the_llm_is_the_module_that_feeds_no_other() -> None:
    assert mixed_graph().language.name == LANGUAGE


def test_an_edge_is_found_by_its_name() -> None:
    assert mixed_graph().edge("audio->language") == Edge("audio", LANGUAGE)


def test_encoders_of_a_group_are_the_edges_that_start_there() -> None:
    graph = mixed_graph()
    assert [edge.source for edge in graph.encoders("encoders")] == ["audio"]
    assert [edge.source for edge in graph.encoders(LANGUAGE)] == ["vision"]


def test_the_ranks_of_a_graph_are_those_of_all_its_modules() -> None:
    graph = graph_of(node("vision", "a", range(3)), node(LANGUAGE, "b", range(3, 7), lane_size=2))
    assert graph.num_ranks == 7
    assert graph.nodes[LANGUAGE].lanes == ((3, 4), (5, 6))
    assert graph.nodes[LANGUAGE].places == {3, 4, 5, 6}


def test_a_frozen_encoder_runs_no_backward() -> None:
    assert not mixed_graph().runs_backward("audio")


def test_a_frozen_llm_above_a_trainable_encoder_runs_backward() -> None:
    assert frozen_llm(encoder_trains=True).runs_backward(LANGUAGE)


def test_a_frozen_llm_above_frozen_encoders_runs_no_backward() -> None:
    assert not frozen_llm(encoder_trains=False).runs_backward(LANGUAGE)


def frozen_llm(encoder_trains: bool) -> ModuleGraph:
    vision = node("vision", "a", range(1), trainable=encoder_trains)
    return graph_of(vision, node(LANGUAGE, "b", range(1, 2), trainable=False))


def test_backward_reaches_through_a_chain_of_modules() -> None:
    nodes = {
        name: node(name, name, range(i, i + 1), trainable=name == "a")
        for i, name in enumerate(("a", "b", "c"))
    }
    graph = ModuleGraph(nodes, (Edge("a", "b"), Edge("b", "c")))
    assert graph.runs_backward("c")
