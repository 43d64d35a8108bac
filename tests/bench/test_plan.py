"""How many samples a plan needs, and how long planning takes in time of the process itself."""

import pytest

from disagg_train.bench.plan import SCALES, Draws, PlanResult, run_plan, timed

_BAR_S = {1024: 60.0, 10_000: 600.0}


@pytest.mark.bench
def test_1024_gpus_are_planned_within_a_minute() -> None:
    (size,) = [each for each in SCALES if each.gpus == 1024]
    found = timed(size)
    assert found.cpu_s < _BAR_S[1024], found


@pytest.fixture(scope="module")
def measured() -> PlanResult:
    return run_plan()


def _of(result: PlanResult, b: int) -> Draws:
    return next(row for row in result.b_min.rows if row.b == b)


@pytest.mark.soak
@pytest.mark.timeout(1800)
class TestAsManyDrawsAsTell:
    def test_256_samples_choose_what_the_whole_data_set_does(
        self, measured: PlanResult, keep
    ) -> None:
        keep("plan", measured.as_dict())
        assert measured.b_min.b_min is not None and measured.b_min.b_min <= 256
        assert _of(measured, 256).equal >= 95, measured.b_min

    def test_4_samples_do_not_and_that_costs(self, measured: PlanResult) -> None:
        few = _of(measured, 4)
        assert few.equal <= 75 and few.times_mean > 1.01, measured.b_min

    def test_planning_keeps_to_its_bars(self, measured: PlanResult) -> None:
        for found in measured.planning:
            assert found.cpu_s < _BAR_S.get(found.gpus, 60.0), found
