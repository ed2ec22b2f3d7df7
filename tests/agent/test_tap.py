"""Watching verdicts: what a tap takes, what it holds, what it drops and counts, and how many there may be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_world import ACK, ANY_EGRESS, CLIENT, DNS, INGRESS, SECOND, SSH, World, reply, tcp, udp

from secgroups.agent.errors import TooManyTapsError
from secgroups.agent.flow import Reason, Verdict
from secgroups.agent.tap import ONE_IN_MAX, TAP_EVENTS_MAX, TAPS_MAX, JoinedTap, Taps, TapSettings

MINE = "10.0.0.9"
DENIED = tcp(CLIENT, MINE, 23)
ALLOWED = udp(CLIENT, MINE, 53)


def ports(events):
    return [event.packet.source_port for event in events]


def deny(world, *source_ports):
    for port in source_ports:
        assert world.reason(replace(DENIED, source_port=port)).name == "NO_RULE"


def test_a_tap_tells_the_packet_its_verdict_and_when(engine):
    world = World(engine, SSH)
    tap = world.firewall.watch(8)
    world.advance(2.5)
    verdict = world.decide(DENIED)
    assert tap.read(8) == [(1_000 * SECOND + 2_500_000_000, DENIED, verdict)]
    assert tap.read(8) == []


@pytest.mark.parametrize(("expected", "allowed"), [(["NO_RULE", "INVALID_STATE"], False), (None, True)])
def test_a_tap_takes_denials_or_everything(engine, expected, allowed):
    world = World(engine, DNS)
    tap = world.firewall.watch(8, allowed=allowed)
    given = world.reasons(ALLOWED, DENIED, reply(ALLOWED), reply(DENIED, tcp_flags=ACK))
    assert given == ["NEW", "NO_RULE", "ESTABLISHED", "INVALID_STATE"]
    assert [event.verdict.reason.name for event in tap.read(8)] == (expected or given)
    assert tap.dropped == 0


def test_explain_is_no_verdict_given(engine):
    world = World(engine, DNS)
    tap = world.firewall.watch(8, allowed=True)
    world.explain(ALLOWED)
    assert tap.read(8) == []


def test_a_full_tap_keeps_what_it_has_and_counts_what_it_drops(engine):
    world = World(engine, SSH)
    tap = world.firewall.watch(3)
    deny(world, 1, 2, 3)
    assert tap.dropped == 0
    deny(world, 4, 5)
    assert tap.dropped == 2
    assert ports(tap.read(2)) == [1, 2]
    deny(world, 6, 7, 8)
    assert (ports(tap.read(100)), tap.dropped) == ([3, 6, 7], 3)


@pytest.mark.parametrize(("expected", "one_in"), [([1, 2, 3, 4, 5, 6, 7], 1), ([1, 3, 5, 7], 2), ([1, 4, 7], 3), ([1], 7)])
def test_one_in_n_denials_is_taken_whatever_is_allowed_between(engine, expected, one_in):
    world = World(engine, DNS)
    tap = world.firewall.watch(8, one_in=one_in)
    for port in range(1, 8):
        deny(world, port)
        world.reason(ALLOWED)
    assert ports(tap.read(8)) == expected


def test_what_sampling_passes_by_is_not_dropped(engine):
    world = World(engine, SSH)
    tap = world.firewall.watch(1, one_in=2)
    deny(world, 1, 2, 3, 4)
    assert (ports(tap.read(8)), tap.dropped) == ([1], 1)


def test_taps_do_not_disturb_each_other(engine):
    world = World(engine, ANY_EGRESS)
    small, large = world.firewall.watch(1), world.firewall.watch(8)
    deny(world, 1, 2)
    assert (ports(large.read(8)), ports(small.read(8))) == ([1, 2], [1])
    assert (large.dropped, small.dropped) == (0, 1)


def test_a_closed_tap_takes_nothing_more(engine):
    world = World(engine, SSH)
    tap = world.firewall.watch(8)
    deny(world, 1)
    tap.close()
    deny(world, 2)
    tap.close()
    assert (ports(tap.read(8)), tap.dropped) == ([1], 0)


def test_there_are_as_many_taps_as_may_be_and_a_closed_one_makes_room(engine):
    world = World(engine, SSH)
    taps = [world.firewall.watch(1) for _ in range(TAPS_MAX)]
    with pytest.raises(TooManyTapsError, match="8 watch the verdicts of this agent, the most allowed is 8"):
        world.firewall.watch(1)
    taps[3].close()
    taps[3].close()
    assert world.firewall.watch(1).read(1) == []
    with pytest.raises(TooManyTapsError):
        world.firewall.watch(1)


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("events_max 0 is not in 1..65536", {"events_max": 0}),
        ("events_max 65537 is not in 1..65536", {"events_max": TAP_EVENTS_MAX + 1}),
        ("one_in 0 is not in 1..1000000", {"events_max": 1, "one_in": 0}),
        ("one_in 1000001 is not in 1..1000000", {"events_max": 1, "one_in": ONE_IN_MAX + 1}),
    ],
)
def test_what_no_tap_can_be_is_refused_with_its_bound(engine, message, wanted):
    with pytest.raises(ValueError, match="is not in") as caught:
        World(engine).firewall.watch(**wanted)
    assert str(caught.value) == message


def test_a_server_that_is_not_guarded_is_told_by_the_name_that_was_asked_for(engine):
    world = World(engine, SSH)
    tap = world.firewall.watch(10)
    strangers = [tcp(CLIENT, "10.0.0.9", 22, at=f"p/stranger-{number}", direction=INGRESS) for number in range(3)]
    for asked in strangers:
        assert world.firewall.decide(asked, world.now_ns).reason.name == "UNKNOWN_SERVER"
    assert [event.packet.server for event in tap.read(10)] == [asked.server for asked in strangers]


@pytest.mark.parametrize("one_in", [1, 2, 3, 7])
def test_what_is_lost_counts_as_what_would_have_been_taken_and_sampling_goes_on(one_in):
    lossy, whole = (Taps().open(TapSettings(events_max=100, one_in=one_in)) for _ in range(2))
    denied = Verdict(reason=Reason.NO_RULE)
    number = 0
    for lost, offered in ((3, 2), (0, 5), (1, 1), (14, 4), (2, 0), (6, 9)):
        for tap in (lossy, whole):
            if tap is lossy:
                tap.lose(lost)
            for each in range(number if tap is whole else number + lost, number + lost + offered):
                tap.offer(replace(DENIED, source_port=each), denied, each)
        number += lost + offered
    told, all_of_them = ports(lossy.read(100)), ports(whole.read(100))
    assert set(told) < set(all_of_them)
    assert lossy.dropped == len(all_of_them) - len(told)


def test_joined_taps_tell_together_what_each_takes():
    taps = Taps()
    joined = JoinedTap((taps.open(TapSettings(events_max=2)), taps.open(TapSettings(events_max=8, allowed=True))))
    for number in range(3):
        taps.offer(replace(DENIED, source_port=number), Verdict(reason=Reason.NO_RULE), number)
    taps.offer(replace(ALLOWED, source_port=9), Verdict(reason=Reason.NEW), 9)
    assert joined.dropped == 1
    assert ports(joined.read(3)) == [0, 0, 1]
    assert ports(joined.read(8)) == [1, 2, 9]
    joined.close()
    assert taps.settings == []
