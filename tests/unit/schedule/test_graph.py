"""Stage graphs: who feeds whom, who runs backward."""

from hypothesis import given
from hypothesis import strategies as st

from disagg_train.schedule.graph import Edge, Reach, StageGraph
from tests.unit.schedule.strategies import LANGUAGE, graph_of, mixed_graph, node, pipelined_graph


def test_the_llm_is_the_module_that_feeds_no_other() -> None:
    assert mixed_graph().last.name == LANGUAGE
    assert [stage.name for stage in pipelined_graph().language] == ["language.0", "language.1"]


def test_an_edge_is_found_by_its_name() -> None:
    assert mixed_graph().edge("audio->language") == Edge("audio", LANGUAGE)


def test_a_stage_knows_its_edges() -> None:
    graph = pipelined_graph()
    assert [edge.name for edge in graph.into("language.0")] == ["vision->language"]
    assert [edge.name for edge in graph.out_of("language.0")] == ["language.0->language.1"]


def test_the_longest_path_counts_every_stage() -> None:
    """Two encoders on one rank each -> LLM of two stages -> generator: four stages in a row."""
    names = ("audio", "vision", "language.0", "language.1", "generator")
    nodes = {name: node(name, name, range(i, i + 1)) for i, name in enumerate(names)}
    edges = [Edge("audio", "language.0"), Edge("vision", "language.0")]
    edges += [Edge("language.0", "language.1"), Edge("language.1", "generator")]
    graph = StageGraph(nodes, tuple(edges))
    assert [graph.stages_after(name) for name in names] == [3, 3, 2, 1, 0]


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


def frozen_llm(encoder_trains: bool) -> StageGraph:
    vision = node("vision", "a", range(1), trainable=encoder_trains)
    return graph_of(vision, node(LANGUAGE, "b", range(1, 2), trainable=False))


def test_backward_reaches_through_a_chain_of_modules() -> None:
    nodes = {
        name: node(name, name, range(i, i + 1), trainable=name == "a")
        for i, name in enumerate(("a", "b", "c"))
    }
    graph = StageGraph(nodes, (Edge("a", "b"), Edge("b", "c")))
    assert graph.runs_backward("c")


@given(st.integers(0, 5), st.none() | st.integers(1, 6))
def test_a_microbatch_draws_on_those_that_it_may_consume(span: int, window: int | None) -> None:
    reach, count = Reach(span, window), range(20)
    drawn = {(source, taken) for taken in count for source in reach.drawn_on(taken)}
    assert drawn == {(s, taken) for s in count for taken in reach.consumers(s) if taken in count}
    assert all(0 <= taken - source <= span for source, taken in drawn)
    assert window is None or all(s // window == taken // window for s, taken in drawn)
