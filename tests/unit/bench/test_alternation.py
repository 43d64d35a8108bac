import pytest

from disagg_train.bench.alternation import STEPS_PER_RUN, alternate, num_steps
from disagg_train.errors import ConfigError, PlanError


class Fake:
    """Takes ``step_s`` per step and writes its turns down."""

    def __init__(self, name: str, step_s: float, turns: list[str], loss: float = 1.0) -> None:
        self.name, self.losses = name, list[float]()
        self._step_s, self._turns, self._loss = step_s, turns, loss

    def run(self, count: int) -> float:
        self._turns.append(self.name)
        self.losses += [self._loss] * count
        return self._step_s


def test_blocks_alternate_who_is_outside_after_a_warm_up() -> None:
    turns: list[str] = []
    alternate(Fake("a", 0.2, turns), Fake("b", 0.1, turns), 2)
    assert "".join(turns) == "ab" + "abba" + "baab"


def test_the_ratio_is_ours_over_the_other() -> None:
    paired = alternate(Fake("a", 0.2, []), Fake("b", 0.1, []), 3)
    assert (paired.ours_ms, paired.other_ms) == pytest.approx((200.0, 100.0))
    assert paired.ratio == pytest.approx(2.0)
    assert paired.ratio_interval_95 == pytest.approx((2.0, 2.0))
    assert paired.a_a_interval_95 == pytest.approx((1.0, 1.0))


def test_nothing_is_measured_where_losses_differ() -> None:
    turns: list[str] = []
    with pytest.raises(PlanError, match=r"step 0: loss 1\.0 by a, 1\.1 by b"):
        alternate(Fake("a", 0.1, turns), Fake("b", 0.1, turns, loss=1.1), 5)
    assert turns == ["a", "b"]


@pytest.mark.parametrize("blocks", [1, 5])
def test_a_contestant_trains_as_many_steps_as_are_planned(blocks: int) -> None:
    ours = Fake("a", 0.1, [])
    alternate(ours, Fake("b", 0.1, []), blocks)
    assert len(ours.losses) == num_steps(blocks) == (2 * blocks + 1) * STEPS_PER_RUN


def test_no_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="use at least 1"):
        num_steps(0)


def test_runs_are_as_long_as_asked_for_after_the_warm_up() -> None:
    ours = Fake("a", 0.1, [])
    alternate(ours, Fake("b", 0.1, []), 1, steps_per_run=7)
    assert len(ours.losses) == STEPS_PER_RUN + 2 * 7
