"""What goes leaves nothing behind: engines, tables, rules, members, servers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from lives import Ask, Change, make_life
from lives_packets import Asked

from secgroups.agent.errors import BaseVersionError
from secgroups.agent.firewall import Firewall
from secgroups.agent.ruleset import RulesetUpdate

ROUNDS, WARM_UP = 60, 20
GROWTH_BYTES_MAX = 2 * 1_048_576
LIFE = make_life("memory-3", 300)
UPDATES = [event.update for event in LIFE.events if isinstance(event, Change)]
ASKED = [each for event in LIFE.events if isinstance(event, Ask) for each in event.asked]


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * 4_096


def lived(firewall: Firewall, updates: list[RulesetUpdate], asked: list[Asked]) -> Firewall:
    """Tell ``firewall`` all of this, in turn."""
    for at, update in enumerate(updates):
        try:
            firewall.apply(update, at)
        except BaseVersionError:
            continue
        for each in asked[at * 8 : at * 8 + 8]:
            firewall.decide(each.packet, at)
            firewall.explain(each.packet, at)
    return firewall


def one_after_another() -> Callable[[], None]:
    return lambda: lived(Firewall(LIFE.settings, now_ns=0), UPDATES, ASKED)


def handed_on() -> Callable[[], None]:
    """Return a round in which a table goes to a successor, as large, larger, and as small as it was."""
    held = [lived(Firewall(replace(LIFE.settings, flows_max=64), now_ns=0), UPDATES, ASKED)]

    def go_on() -> None:
        for flows_max in (64, 256, 64):
            settings = replace(LIFE.settings, flows_max=flows_max)
            held[0] = lived(Firewall(settings, now_ns=0, flows=held[0].flows), UPDATES, ASKED)

    return go_on


def told_again_and_again() -> Callable[[], None]:
    firewall, rng = Firewall(LIFE.settings, now_ns=0), Random(1)

    def tell() -> None:
        shuffled = list(ASKED)
        rng.shuffle(shuffled)
        lived(firewall, UPDATES, shuffled)

    return tell


@pytest.mark.parametrize("made", [one_after_another, handed_on, told_again_and_again], ids=lambda made: made.__name__)
def test_memory_does_not_grow_with_what_is_gone(made):
    once_more = made()
    for _ in range(WARM_UP):
        once_more()
    before = resident_bytes()
    for _ in range(ROUNDS):
        once_more()
    assert resident_bytes() - before < GROWTH_BYTES_MAX
