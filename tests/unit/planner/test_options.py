"""Options: what no other one beats in all that counts, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from disagg_train.planner.options import Option, option, undominated
from disagg_train.planner.sample_costs import ModuleCost, PassCost, StageCost
from disagg_train.planner.shapes import Shape
from disagg_train.planner.workload import Load
from disagg_train.schedule.ops import OpKind

_NUMBERS = st.integers(0, 4).map(float)
_OPTIONS = st.builds(Option, st.just(Shape()), st.just(1), *[_NUMBERS] * 5, st.integers(1, 3))


@given(st.lists(_OPTIONS, max_size=30))
def test_every_option_left_out_is_beaten_by_one_that_stays(options: list[Option]) -> None:
    kept = undominated(options)
    assert all(any(k.no_worse(each) for k in kept) for each in options)
    assert not any(a.no_worse(b) for a in kept for b in kept if a is not b)


def test_replicas_share_the_work_and_stages_the_layers() -> None:
    stage = StageCost({OpKind.FORWARD: PassCost(1.0), OpKind.BACKWARD: PassCost(2.0)}, 10.0)
    load = Load(tokens=80.0, squares=0.0, spread=0.0)
    found = option(Shape(pp=2), 4, ModuleCost((stage, stage)), load, 16, 2, (5.0, 7.0), (0.0, 0.5))
    assert found.busy_s == 3.0 * 80 / 4
    assert found.fill_s == found.busy_s / 2
    assert (found.state_bytes, found.passing_bytes) == (7.0, 0.5 * 80 / (4 * 2))
    assert found.activation_bytes == 10.0 * 80 / (4 * 2)


def test_replicas_without_samples_do_not_make_it_quicker() -> None:
    stage = StageCost({OpKind.FORWARD: PassCost(1.0), OpKind.BACKWARD: PassCost(2.0)})
    load = Load(tokens=80.0, squares=0.0, spread=0.0)
    few, many = (
        option(Shape(), dp, ModuleCost((stage,)), load, 8, 4, (0.0,), (0.0,)).busy_s
        for dp in (2, 16)
    )
    assert few == many


def test_ranks_without_samples_have_some_where_several_microbatches_are_taken_at_once() -> None:
    stage = StageCost({OpKind.FORWARD: PassCost(1.0), OpKind.BACKWARD: PassCost(2.0)}, 10.0)
    load = Load(tokens=80.0, squares=0.0, spread=0.0)
    apart, at_once = (
        option(Shape(), 16, ModuleCost((stage,)), load, 16, 4, (0.0,), (1.0,), run)
        for run in (1, 4)
    )
    assert (apart.busy_s, at_once.busy_s) == (4 * 3.0 * 80 / 16, 3.0 * 80 / 16)
    assert apart.activation_bytes == 4 * at_once.activation_bytes
    assert apart.passing_bytes == at_once.passing_bytes == 80 / 16
