"""Row 7: later fragments get what their first fragment got."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_world import (
    ACK,
    ANY_EGRESS,
    ANY_INGRESS,
    CLIENT,
    DB,
    DNS,
    EGRESS,
    FIRST,
    LATER,
    OTHER,
    PING,
    WEB,
    World,
    icmp,
    rule,
    tcp,
    udp,
)

from secgroups.agent.flow import Fragment

MINE = "10.0.0.9"


def later(first, **changes):
    """Return a later fragment of the same packet: no ports, flags or types are known."""
    return replace(
        first,
        **{
            "fragment": LATER,
            "source_port": 0,
            "destination_port": 0,
            "tcp_flags": 0,
            "icmp_type": 0,
            "icmp_code": 0,
            "icmp_id": 0,
            "quoted": None,
        }
        | changes,
    )


QUERY = udp(CLIENT, MINE, 53, fragment=FIRST, fragment_id=77)


@pytest.mark.parametrize(
    ("expected", "first"),
    [
        ("NEW", QUERY),
        ("NO_RULE", replace(QUERY, destination_port=54)),
        ("INVALID_PACKET", replace(QUERY, destination_port=0)),
        ("INVALID_STATE", tcp(CLIENT, MINE, 53, ACK, fragment=FIRST, fragment_id=77)),
        ("NEW", icmp(CLIENT, MINE, 8, fragment=FIRST, fragment_id=77)),
        ("ROGUE_SERVICE", udp(MINE, CLIENT, 68, source_port=67, fragment=FIRST, fragment_id=77)),
        ("ESSENTIAL", udp(CLIENT, MINE, 68, source_port=67, fragment=FIRST, fragment_id=77)),
    ],
    ids=str,
)
def test_later_fragments_get_verdict_reason_and_rule_of_the_first(engine, expected, first):
    world = World(engine, DNS, PING)
    told = world.decide(first)
    for _ in range(2):
        verdict = world.decide(later(first))
        assert (verdict.reason.name, verdict.rule_id, verdict.opened) == (expected, told.rule_id, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"fragment_id": 78},
        {"source": udp(OTHER, MINE, 53).source},
        {"protocol": 6},
        {"direction": EGRESS, "source": QUERY.destination, "destination": QUERY.source},
    ],
    ids=str,
)
def test_a_later_fragment_of_another_packet_is_unknown(engine, changes):
    world = World(engine, DNS, ANY_EGRESS)
    world.reason(QUERY)
    assert world.reasons(later(QUERY, **changes), later(QUERY)) == ["UNKNOWN_FRAGMENT", "NEW"]


def test_fragments_of_two_servers_do_not_meet(engine):
    world = World(engine, DNS)
    world.bind("q/db", "db", addresses=(MINE,))
    world.reason(QUERY)
    assert world.reason(later(QUERY, server="q/db")).name == "UNKNOWN_FRAGMENT"


def test_only_a_first_fragment_is_remembered(engine):
    world = World(engine, DNS)
    world.reason(replace(QUERY, fragment=Fragment.NONE))
    assert world.reason(later(QUERY)).name == "UNKNOWN_FRAGMENT"


def test_a_first_fragment_is_kept_for_thirty_seconds_which_later_ones_do_not_renew(engine):
    world = World(engine, DNS)
    world.reason(QUERY)
    world.advance(29.999)
    assert world.reason(later(QUERY)).name == "NEW"
    world.advance(0.001)
    assert world.reason(later(QUERY)).name == "UNKNOWN_FRAGMENT"


def test_a_newer_first_fragment_takes_the_place_of_an_older_one(engine):
    world = World(engine, DNS)
    world.reasons(QUERY, replace(QUERY, destination_port=54))
    assert world.reason(later(QUERY)).name == "NO_RULE"


def test_the_first_fragment_goes_through_the_flow_table_like_any_packet(engine):
    world = World(engine, DNS)
    assert world.decide(QUERY).opened
    again = replace(QUERY, fragment_id=78)
    assert world.reasons(again, later(again), later(QUERY)) == ["ESTABLISHED", "ESTABLISHED", "NEW"]


def test_fragments_are_forgotten_at_a_new_epoch_of_their_server_only(engine):
    world = World(engine, DNS)
    world.apply(groups=(world.group("web", ANY_INGRESS),), servers=(world.binding(WEB, "web"),))
    elsewhere = udp(CLIENT, "10.0.0.5", 53, fragment=FIRST, fragment_id=77)
    world.reasons(QUERY, elsewhere)
    world.set_rules(DNS, rule("another", EGRESS))
    assert world.reasons(later(QUERY), later(elsewhere)) == ["UNKNOWN_FRAGMENT", "NEW"]


def test_fragments_of_a_server_that_went_and_came_back_are_unknown(engine):
    world = World(engine, DNS)
    world.reason(QUERY)
    world.apply(removed_servers=(DB,))
    assert world.firewall.stats(world.now_ns).fragments == 0
    world.bind(DB, "db")
    assert world.reason(later(QUERY)).name == "UNKNOWN_FRAGMENT"


def test_the_table_of_fragments_is_bounded_and_the_oldest_goes(engine):
    world = World(engine, DNS, fragments_max=4)
    sent = [replace(QUERY, fragment_id=number) for number in range(5)]
    for first in sent:
        world.reason(first)
        assert world.firewall.stats(world.now_ns).fragments <= 4
    assert world.reasons(*map(later, sent)) == ["UNKNOWN_FRAGMENT"] + ["ESTABLISHED"] * 4


def test_a_first_fragment_that_comes_again_takes_no_second_place(engine):
    world = World(engine, DNS, fragments_max=4)
    sent = [replace(QUERY, fragment_id=number) for number in range(4)]
    world.reasons(*sent, sent[2])
    assert world.reason(later(sent[0])).name == "NEW"
