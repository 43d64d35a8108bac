"""Combinations in columns say what one combination at a time says."""

from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.config.base import divisors
from disagg_train.config.job import LANGUAGE
from disagg_train.planner.candidates import Team
from disagg_train.planner.combinations import Block, Combinations, in_flight
from disagg_train.planner.options import Option
from disagg_train.planner.shapes import Shape

_ROOM = 100.0
_GROUPINGS = (
    (("vision", "audio", LANGUAGE),),
    (("vision",), ("audio",), (LANGUAGE,)),
    (("vision", "audio"), (LANGUAGE,)),
    (("audio",), ("vision", LANGUAGE)),
)
_Chosen = Mapping[str, Option]

_numbers = st.floats(0.0, 40.0)


@st.composite
def _options(draw: st.DrawFn, language: bool) -> list[Option]:
    pps = draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3, unique=True))
    found = []
    for pp in pps:
        vpp = draw(st.sampled_from([1, 2])) if language and pp > 1 else 1
        numbers = [draw(_numbers) for _ in range(5)]
        run = 1 if language else draw(st.sampled_from([1, 1, 2, 4]))
        found.append(Option(Shape(pp=pp, vpp=vpp), 1, *numbers, run))
    return found


@st.composite
def _blocks(draw: st.DrawFn) -> tuple[tuple[Team, ...], dict[str, list[Option]], int, str]:
    teams = tuple(Team(names, 4) for names in draw(st.sampled_from(_GROUPINGS)))
    choices = {
        name: draw(_options(language=name == LANGUAGE)) for team in teams for name in team.modules
    }
    schedule = draw(st.sampled_from(["1f1b", "zero_bubble"]))
    return teams, choices, draw(st.sampled_from([4, 8, 12])), schedule


@given(_blocks(), st.sampled_from([0.25, 1.0, 4.0]))
def test_columns_have_each_combination_that_fits_with_its_window_and_seconds(
    drawn: tuple[tuple[Team, ...], dict[str, list[Option]], int, str], stretch: float
) -> None:
    teams, choices, microbatches, schedule = drawn
    wanted = {}
    for options in product(*choices.values()):
        chosen = dict(zip(choices, options, strict=True))
        if window := _window(teams, chosen, microbatches, schedule):
            shapes = tuple(option.shape for option in options)
            wanted[shapes] = window, _step_s(teams, chosen, microbatches, window, schedule, stretch)
    block = Block(teams, choices, microbatches, schedule, [_ROOM] * len(teams))
    steps_s = block.steps_s(stretch).tolist()
    candidates = [block.candidate(index) for index in range(len(block))]
    found = {
        tuple(each.shapes[name] for name in choices): (each.window, step_s)
        for each, step_s in zip(candidates, steps_s, strict=True)
    }
    assert found == {shapes: (w, pytest.approx(s)) for shapes, (w, s) in wanted.items()}


def test_the_quickest_number_of_microbatches_of_each_layout_is_kept() -> None:
    teams = (Team(("vision", LANGUAGE), 4),)
    plain, piped = Shape(), Shape(pp=2)
    blocks = [
        Block(
            teams,
            {
                "vision": [Option(plain, 4, 1.0, 0, 0, 0, 0)],
                LANGUAGE: [
                    Option(plain, 4, 9.0, 0, 0, 0, 0),
                    Option(piped, 2, busy_s, 0, 0, 0, 0),
                ],
            },
            microbatches,
            "1f1b",
            [_ROOM],
        )
        for microbatches, busy_s in ((4, 8.0), (8, 7.0))
    ]
    together = Combinations.of(blocks)
    steps_s, numbers = together.quickest(1.0)
    candidates = [together.candidate(number) for number in numbers.tolist()]
    found = {
        each.shapes[LANGUAGE]: (each.microbatches, step_s)
        for each, step_s in zip(candidates, steps_s.tolist(), strict=True)
    }
    assert found == {plain: (4, 10.0), piped: (8, 8.0)}


def _window(teams: tuple[Team, ...], chosen: _Chosen, microbatches: int, schedule: str) -> int:
    """Return the largest window that fits one combination; 0 where none does."""
    language, window = chosen[LANGUAGE], microbatches
    span = max(each.run for each in chosen.values()) - 1
    for team in teams:
        encoders = [chosen[name] for name in team.modules if name != LANGUAGE]
        free = _ROOM - sum(chosen[name].state_bytes for name in team.modules)
        free -= max(chosen[name].passing_bytes for name in team.modules)
        if LANGUAGE in team.modules:
            free -= language.activation_bytes * in_flight(language, microbatches, schedule)
            a_window = sum(each.activation_bytes for each in encoders)
            if free >= 0 and a_window * microbatches > free:
                units = [language.shape.pp if language.shape.vpp > 1 else 1]
                units += [each.run for each in encoders]
                smaller = [w for w in divisors(microbatches) if not any(w % u for u in units)]
                window = max((w for w in smaller if a_window * w <= free), default=0)
        else:
            free -= sum(
                each.activation_bytes * min(microbatches, each.shape.pp + language.shape.pp + span)
                for each in encoders
            )
        if free < 0:
            return 0
    return window


def _step_s(
    teams: tuple[Team, ...],
    chosen: _Chosen,
    microbatches: int,
    window: int,
    schedule: str,
    stretch: float,
) -> float:
    """Return about how long one combination's step takes."""
    language = chosen[LANGUAGE]
    fill_s = language.fill_s * (0.5 if schedule == "zero_bubble" else 1.0)
    home_s, longest_s, before_s = language.busy_s, 0.0, 0.0
    for team in teams:
        encoders = [chosen[name] for name in team.modules if name != LANGUAGE]
        busy_s = stretch * sum(each.busy_s for each in encoders)
        through_s = stretch * sum(each.fill_s for each in encoders)
        if LANGUAGE in team.modules:
            home_s += busy_s
            fill_s += through_s
        else:
            longest_s = max(longest_s, busy_s)
            before_s = max(before_s, busy_s / microbatches + through_s)
    others_s = before_s if home_s >= longest_s else language.busy_s / microbatches
    return max(home_s, longest_s) + fill_s * microbatches / window + others_s
