"""Errors say where they happened, and survive the way from a rank to the driver."""

import pickle

import pytest

from disagg_train import errors
from disagg_train.errors import ConfigError, DisaggTrainError, RankError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DisaggTrainError)
]


def a_rank_error() -> RankError:
    return RankError("out of memory", "encoders", 3, node="10.0.0.7", op="forward vision 2")


def test_a_rank_error_names_group_rank_node_and_op() -> None:
    message = str(a_rank_error())
    assert message == (
        "group 'encoders' rank 3 on node 10.0.0.7 during forward vision 2: out of memory"
    )


def test_a_rank_error_leaves_out_what_is_not_known() -> None:
    assert str(RankError("died", "language", 0)) == "group 'language' rank 0: died"


def test_a_rank_error_survives_pickling_between_processes() -> None:
    before = a_rank_error()
    after = pickle.loads(pickle.dumps(before))
    assert str(after) == str(before)
    assert vars(after) == vars(before)


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not RankError])
def test_every_other_error_survives_pickling(kind: type[DisaggTrainError]) -> None:
    after = pickle.loads(pickle.dumps(kind("why")))
    assert type(after) is kind and str(after) == "why"


def test_a_config_error_is_a_value_error_so_that_pydantic_collects_it() -> None:
    assert issubclass(ConfigError, ValueError)
