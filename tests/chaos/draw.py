"""Which faults befall which run: a deck of all kinds, shuffled anew whenever it is used up."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from tests.chaos.faults import DRIVER, Deed, Fault, Moment
from tests.chaos.jobs import NUM_STEPS

Victim = Literal["encoder", "language", "both", "driver"]
_FIRST_STEP, _SPACING = 2, 3
_LAYOUTS = ("dp", "tp", "colocated", "dp", "pp")
"""Of the runs, in turn: few different ones first, as each takes an undisturbed run."""
_FAULTS_PER_RUN = (NUM_STEPS - 1 - _FIRST_STEP) // _SPACING


@dataclass(frozen=True)
class Card:
    """A kind of fault.

    Args:
        victim: a rank of that kind, or one of each kind at once, or the driver.
        moment: when.
        deed: what happens.
        most: largest count.
        follows: whether it happens in the recovery from another one.
    """

    victim: Victim
    moment: Moment
    deed: Deed = "kill"
    most: int = 0
    follows: bool = False


DECK = (
    Card("encoder", "op", most=99),
    Card("language", "op", most=99),
    Card("both", "op", most=99),
    Card("encoder", "transfer sent", most=2),
    Card("language", "transfer sent", most=2),
    Card("encoder", "transfer awaited", most=2),
    Card("language", "transfer awaited", most=2),
    Card("encoder", "gradient sync"),
    Card("language", "gradient sync"),
    Card("language", "gradients synced"),
    Card("encoder", "weights half updated"),
    Card("language", "weights half updated"),
    Card("language", "weights updated"),
    Card("both", "weights half updated"),
    Card("encoder", "copying"),
    Card("language", "copying"),
    Card("encoder", "sending to vaults"),
    Card("language", "sending to vaults"),
    Card("encoder", "writing a checkpoint", most=9),
    Card("language", "writing a checkpoint", most=9),
    Card("language", "evaluation", most=99),
    Card("encoder", "setting up", follows=True),
    Card("language", "restoring", follows=True),
    Card("language", "op", "stop", most=99),
    Card("encoder", "transfer awaited", "stop", most=2),
    Card("language", "writing a checkpoint", "stop", most=9),
    Card("language", "op", "replace node", most=99),
    Card("encoder", "copying", "kill vault"),
    Card("driver", "recording a step", most=1),
    Card("driver", "writing a manifest", most=4),
    Card("driver", "recovering", follows=True),
)


@dataclass(frozen=True)
class Draw:
    """The faults of one run.

    Args:
        number: of the run, which all of it follows from.
        layout: name of its layout.
        faults: in order of their steps.
    """

    number: int
    layout: str
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        listed = "\n".join(f"  {fault}" for fault in self.faults)
        return f"run {self.number}, layout {self.layout!r}:\n{listed}"


def draws(num_faults: int) -> list[Draw]:
    """Return runs with so many faults together, or a few more; the first are always the same."""
    num_decks = -(-num_faults // len(DECK))
    hands = [hand for deal in range(num_decks) for hand in _hands(random.Random(deal))]
    return [
        Draw(number, layout, _faults(number, layout, hand))
        for number, (layout, hand) in enumerate(zip(cycle(_LAYOUTS), hands, strict=False))
    ]


def _hands(chance: random.Random) -> list[list[Card]]:
    """Deal a deck: to each run as many faults as it has steps for, then those in recoveries."""
    first = [card for card in DECK if not card.follows]
    chance.shuffle(first)
    hands = [first[at : at + _FAULTS_PER_RUN] for at in range(0, len(first), _FAULTS_PER_RUN)]
    for hand, card in zip(hands, (card for card in DECK if card.follows), strict=False):
        hand.append(card)
    return hands


def _faults(number: int, layout: str, hand: Sequence[Card]) -> tuple[Fault, ...]:
    chance = random.Random(number)
    faults: list[Fault] = []
    for at, card in enumerate(hand):
        if card.follows:
            cause = next(f for f in reversed(faults) if f.deed == "kill" and f.place != DRIVER)
            step, after = 0, cause.name
        else:
            step, after = _FIRST_STEP + at * _SPACING, ""
        faults.append(_fault(card, f"fault-{at}", step, layout, chance, after))
    return tuple(faults)


def _fault(
    card: Card, name: str, step: int, layout: str, chance: random.Random, after: str
) -> Fault:
    encoder, language = (0, chance.choice((1, 2)))
    if layout == "colocated":
        encoder, language = chance.sample((0, 1), 2)
    place = {"encoder": encoder, "driver": DRIVER}.get(card.victim, language)
    also = (encoder,) if card.victim == "both" else ()
    step = 11 if card.moment == "evaluation" else step
    return Fault(
        name, card.deed, card.moment, place, step, chance.randint(0, card.most), after, also
    )
