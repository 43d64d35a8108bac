"""A failure's report: one line that says it all, and everyone's condition below."""

import json

from disagg_train.driver.failure import Failure, RankCondition
from disagg_train.errors import DataError, RankError

_ERROR = RankError(
    "ValueError: shape 3 at 0x7f21\nmore of it", "llm", 1, "10.0.0.2", "forward language 3"
)
_RANKS = (
    RankCondition("vision", 0, "10.0.0.1", 11, "waiting", "receive language->vision 2", "in wait"),
    RankCondition("llm", 0, "10.0.0.2", 12, "working"),
    RankCondition("llm", 1, "10.0.0.2", 13, "failed", "forward language 3", "in f\nin g"),
)


def test_the_headline_names_rank_node_module_microbatch_and_op() -> None:
    headline = Failure(_ERROR, 7, ("llm",), _RANKS).headline
    assert headline == (
        "step 7: group 'llm' rank 1, node 10.0.0.2, module language, microbatch 3, op forward: "
        "ValueError: shape 3 at 0x7f21"
    )


def test_what_a_dead_rank_cannot_say_comes_from_its_condition() -> None:
    dead = RankCondition("llm", 0, "10.0.0.9", 12, "dead", "agree")
    error = RankError("the actor died", "llm", 0, cause="died")
    headline = Failure(error, 7, ("llm",), (*_RANKS[:1], dead)).headline
    assert headline == "step 7: group 'llm' rank 0, node 10.0.0.9, op agree: the actor died"


def test_a_hang_of_nobody_in_particular_has_no_rank() -> None:
    error = RankError("no answer for 9 s", "any", -1)
    assert Failure(error, 2, (), ()).headline == "step 2: group 'any': no answer for 9 s"


def test_the_report_has_all_stacks_the_culprits_first() -> None:
    text = Failure(_ERROR, 7, ("llm",), _RANKS).text.splitlines()
    assert text[1:3] == ["ValueError: shape 3 at 0x7f21", "more of it"]
    assert text[3:6] == [
        "llm rank 1 (node 10.0.0.2, pid 13): failed during forward language 3",
        "    in f",
        "    in g",
    ]
    assert text[6].startswith("vision rank 0 (node 10.0.0.1, pid 11): waiting")
    assert text[-1] == "to be made anew: llm"


def test_the_report_as_data_is_json() -> None:
    data = json.loads(json.dumps(Failure(_ERROR, 7, ("llm",), _RANKS).as_dict()))
    assert (data["group"], data["rank"], data["op"]) == ("llm", 1, "forward")
    assert (data["module"], data["microbatch"], data["step"]) == ("language", 3, 7)
    assert len(data["ranks"]) == 3
    other = Failure(DataError("sample 3"), 1, (), ()).as_dict()
    assert (other["error"], other["op"]) == ("DataError", "")


def test_another_process_fails_the_same_way_with_other_numbers() -> None:
    again = RankError("ValueError: shape 4 at 0x9e", "llm", 1, "10.0.0.7", "forward language 3")
    elsewhere = RankError("ValueError: shape 4 at 0x9e", "llm", 0, "", "forward language 3")
    later = RankError("ValueError: shape 4 at 0x9e", "llm", 1, "", "forward language 4")
    first = Failure(_ERROR, 7, ("llm",), _RANKS).signature
    assert Failure(again, 7, ("llm", "vision"), ()).signature == first
    assert len({first, *(Failure(e, 7, (), ()).signature for e in (elsewhere, later))}) == 3


def test_a_rank_that_dies_at_another_op_fails_in_another_way() -> None:
    error = RankError("the actor died", "llm", 0, cause="died")
    at = [
        RankCondition("llm", 0, "10.0.0.9", 12, "dead", op) for op in ("grad_sync vision", "setup")
    ]
    assert len({Failure(error, 7, ("llm",), (dead,)).signature for dead in at}) == 2


def test_errors_that_are_not_a_ranks_have_signatures_too() -> None:
    first, second = Failure(DataError("a 1"), 1, (), ()), Failure(DataError("a 2"), 1, (), ())
    assert first.signature == second.signature != Failure(KeyError("a"), 1, (), ()).signature
