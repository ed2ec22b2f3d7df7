"""The compiled engine gives every packet of any life what the reference engine gives it; ``lives`` says what a life is."""

from __future__ import annotations

import pytest
from differential import PACKETS_PER_LIFE, PartedError, described, play, shortest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from lives import Ask, Change, Pass, make_life

from secgroups.agent._engine import CHECKED

# 250 lives of 400 packets: 100,000 packets. The checked build takes its time, and plays a few.
_LIVES = 15 if CHECKED else 250


# A seed that fails is made shorter by leaving out events, not by smaller seeds.
@settings(max_examples=_LIVES, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**64 - 1))
def test_in_any_life_both_engines_give_every_packet_the_same_verdict(seed):
    life = make_life(str(seed), PACKETS_PER_LIFE)
    try:
        assert play(life) >= PACKETS_PER_LIFE
    except PartedError as error:
        pytest.fail(described(life, error), pytrace=False)


def test_a_seed_makes_the_same_life_again():
    assert make_life("7", 50) == make_life("7", 50)
    assert make_life("7", 50) != make_life("8", 50)


def test_a_life_in_which_engines_part_is_told_in_the_events_that_it_takes():
    life = make_life("1", PACKETS_PER_LIFE)

    def parting(_, events):
        # As if an engine failed at the third packet after something was told twice.
        told = asked = 0
        for at, event in enumerate(events):
            told += isinstance(event, Change)
            asked += len(event.asked) if isinstance(event, Ask) and told >= 2 else 0
            if asked >= 3:
                raise PartedError(at, "parted")
        return 0

    events, what = shortest(life, len(life.events) - 1, parting)
    needed = [event for event in events if not isinstance(event, Pass)]
    assert [type(event) for event in needed[:2]] == [Change, Change]
    assert 1 <= len(needed) - 2 <= 3
    assert what.endswith("parted")
