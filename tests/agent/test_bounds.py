"""Section 5: nothing grows without bound, and one server can't starve the others."""

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
    INGRESS,
    RST,
    SSH,
    SYN_ACK,
    WEB,
    World,
    reply,
    tcp,
    udp,
)

MINE, WEB4 = "10.0.0.9", "10.0.0.5"


def query(number, destination=MINE):
    return udp(CLIENT, destination, 53, source_port=1000 + number)


def syn(number, destination=MINE):
    return tcp(CLIENT, destination, 22, source_port=1000 + number)


def alive(world, *openings):
    """Return which of these UDP flows live, without touching any."""
    keys = {(flow.key.server, flow.key.remote_port) for flow in world.firewall.flows.live(world.now_ns)}
    return [(opening.server, opening.source_port) in keys for opening in openings]


def two_servers(engine, **settings):
    world = World(engine, ANY_EGRESS, ANY_INGRESS, **settings)
    world.bind(WEB, "db")
    return world


@pytest.mark.parametrize("bound", ["flows_max", "server_flows_max"])
class TestOneServerAtItsBound:
    """The same for the table and for a server's share, as long as there is one server."""

    def test_answered_flows_are_not_evicted(self, engine, bound):
        world = World(engine, DNS, SSH, **{bound: 4})
        for number in range(4):
            world.open_answered(query(number))
            world.advance(1)
        for asked in (query(5), syn(5), query(6)):
            verdict = world.decide(asked)
            assert (verdict.reason.name, verdict.rule_id, verdict.opened) == ("TABLE_FULL", "", False)
        assert world.reasons(*map(query, range(4))) == ["ESTABLISHED"] * 4

    def test_the_unanswered_flow_with_the_oldest_opening_goes(self, engine, bound):
        world = World(engine, DNS, **{bound: 4})
        for number in range(4):
            world.reason(query(number))
            world.advance(1)
        world.reason(reply(query(1)))
        world.reason(query(0))  # seen last, but opened first
        assert world.decide(query(4)).opened
        assert alive(world, *map(query, range(5))) == [False, True, True, True, True]
        assert world.decide(query(5)).opened
        assert alive(world, *map(query, range(6))) == [False, True, False, True, True, True]
        stats = world.firewall.stats(world.now_ns)
        assert (stats.evicted_unanswered, stats.evicted_answered, stats.evicted, stats.expired) == (2, 0, 2, 0)

    def test_expired_flows_go_first(self, engine, bound):
        world = World(engine, DNS, **{bound: 4})
        world.open_answered(query(0))
        world.advance(100)
        for number in (1, 2, 3):
            world.reason(query(number))
        world.advance(20)  # the answered one is over
        assert world.decide(query(4)).opened
        assert alive(world, *map(query, range(5))) == [False, True, True, True, True]
        assert world.firewall.stats(world.now_ns).expired == 1

    def test_a_full_table_denies_nothing_but_new_flows(self, engine, bound):
        world = World(engine, DNS, SSH, ANY_EGRESS, **{bound: 4})
        for number in range(4):
            world.open_answered(query(number))
        assert world.reasons(query(0), reply(query(0)), udp(MINE, "224.0.0.251", 5353), query(9)) == [
            "ESTABLISHED",
            "ESTABLISHED",
            "NEW",
            "TABLE_FULL",
        ]

    def test_a_packet_that_no_rule_allows_makes_no_room(self, engine, bound):
        world = World(engine, DNS, **{bound: 4})
        for number in range(4):
            world.reason(query(number))
        assert world.reason(syn(9)).name == "NO_RULE"
        assert alive(world, *map(query, range(4))) == [True] * 4

    def test_there_is_room_again_when_a_flow_is_over(self, engine, bound):
        world = World(engine, DNS, SSH, **{bound: 4})
        for number in range(4):
            world.connect(syn(number))
        assert world.reason(query(0)).name == "TABLE_FULL"
        world.reason(replace(syn(2), tcp_flags=RST))
        world.advance(9.999)
        assert world.reason(query(0)).name == "TABLE_FULL"
        world.advance(0.001)
        assert world.decide(query(0)).opened

    def test_a_handshake_counts_as_unanswered_until_it_is_complete(self, engine, bound):
        world = World(engine, SSH, **{bound: 4})
        for number in range(10):
            assert world.decide(syn(number)).opened
            world.reason(reply(syn(number), tcp_flags=SYN_ACK))
        assert world.flow_count() == 4
        world.reason(replace(syn(9), tcp_flags=ACK))
        for number in range(20, 30):
            assert world.decide(syn(number)).opened
        assert world.reason(replace(syn(9), tcp_flags=ACK)).name == "ESTABLISHED"

    def test_a_connection_that_was_refused_counts_as_unanswered(self, engine, bound):
        world = World(engine, SSH, **{bound: 4})
        for number in range(10):
            assert world.decide(syn(number)).opened
            world.reason(reply(syn(number), tcp_flags=RST | ACK))

    def test_explaining_makes_no_room(self, engine, bound):
        world = World(engine, DNS, **{bound: 4})
        for number in range(4):
            world.reason(query(number))
        assert world.explain(query(4)).verdict.opened
        assert alive(world, *map(query, range(5))) == [True, True, True, True, False]


def test_a_full_server_does_not_take_from_others_and_others_do_not_notice(engine):
    world = two_servers(engine, server_flows_max=4)
    for number in range(4):
        world.open_answered(query(number))
    world.reason(query(0, WEB4))
    assert world.reasons(query(9), query(9, WEB4)) == ["TABLE_FULL", "NEW"]
    assert alive(world, query(0, WEB4)) == [True]


def test_a_flood_takes_from_the_server_that_it_is_aimed_at(engine):
    world = two_servers(engine, flows_max=8)
    for number in range(3):
        world.reason(query(number, WEB4))
    for number in range(100):
        world.advance(0.01)
        assert world.decide(query(number)).opened
        assert world.firewall.stats(world.now_ns).entries <= 8
    assert alive(world, *(query(number, WEB4) for number in range(3))) == [True] * 3


def test_a_server_without_unanswered_flows_takes_the_oldest_of_any_other(engine):
    world = two_servers(engine, flows_max=8)
    for number in range(3):
        world.reason(query(number, WEB4))
        world.advance(1)
    for number in range(5):
        world.open_answered(query(number))
    assert world.decide(query(9)).opened
    assert alive(world, *(query(number, WEB4) for number in range(3))) == [False, True, True]


class TestAServerBelowItsFairShare:
    """It always finds room, at the cost of the one that holds the most."""

    def test_the_longest_idle_answered_flow_of_the_largest_goes(self, engine):
        world = two_servers(engine, flows_max=4)
        for number in range(4):
            world.open_answered(query(number))
            world.advance(1)
        world.reason(query(0))
        assert world.decide(query(0, WEB4)).opened
        assert alive(world, *map(query, range(4))) == [True, False, True, True]
        assert world.firewall.stats(world.now_ns).evicted_answered == 1

    def test_it_may_have_several_handshakes_under_way(self, engine):
        world = two_servers(engine, flows_max=8)
        for number in range(8):
            world.open_answered(query(number))
        begun = [syn(number, WEB4) for number in range(4)]
        for opening in begun:
            assert world.decide(opening).opened
        for opening in begun:
            assert world.reason(reply(opening, tcp_flags=SYN_ACK)).name == "ESTABLISHED"

    def test_the_largest_gives_unanswered_flows_first(self, engine):
        world = two_servers(engine, flows_max=4)
        for number in range(3):
            world.open_answered(query(number))
        world.advance(1)
        world.reason(query(3))
        assert world.decide(query(0, WEB4)).opened
        assert alive(world, *map(query, range(4))) == [True, True, True, False]

    def test_at_its_fair_share_it_takes_nothing_answered_any_more(self, engine):
        world = two_servers(engine, flows_max=4)
        for number in range(4):
            world.open_answered(query(number))
        for number in range(2):
            world.open_answered(query(number, WEB4))
        assert world.reasons(query(2, WEB4), query(9)) == ["TABLE_FULL", "TABLE_FULL"]

    def test_its_own_share_is_still_a_bound(self, engine):
        world = World(engine, DNS, flows_max=1000, server_flows_max=4)
        for number in range(4):
            world.open_answered(query(number))
        assert world.reason(query(4)).name == "TABLE_FULL"

    def test_the_servers_that_are_guarded_count_with_traffic_or_without(self, engine):
        world = World(engine, DNS, flows_max=8)
        for number in range(3):
            world.bind(f"p/idle-{number}", "db", addresses=(f"10.0.1.{number}",))
        world.bind(WEB, "db")  # five servers: a fair share is less than two flows
        for number in range(8):
            world.open_answered(query(number))
        for number in range(2):
            world.open_answered(query(number, WEB4))
        assert world.reason(query(2, WEB4)).name == "TABLE_FULL"


def test_a_revoked_flow_holds_its_place_like_any_other(engine):
    world = World(engine, DNS, server_flows_max=4)
    for number in range(4):
        world.open_answered(query(number))
    world.set_rules(SSH)
    assert world.reasons(*map(query, range(4))) == ["REVOKED"] * 4
    assert world.reason(syn(0)).name == "TABLE_FULL"
    world.advance(120)
    assert world.decide(syn(0)).opened


def test_removed_servers_give_their_room_back(engine):
    world = two_servers(engine, flows_max=4)
    for number in range(4):
        world.open_answered(query(number))
    world.apply(removed_servers=(DB,))
    assert world.firewall.stats(world.now_ns).entries == 0
    for number in range(4):
        world.open_answered(query(number, WEB4))
    assert world.reason(query(4, WEB4)).name == "TABLE_FULL"


def test_a_table_that_is_full_of_dead_flows_is_empty_to_the_eye(engine):
    world = World(engine, DNS, server_flows_max=4)
    for number in range(4):
        world.reason(query(number))
    world.advance(30)
    stats = world.firewall.stats(world.now_ns)
    assert (stats.flows, stats.entries, stats.flows_by_state) == (0, 4, {})
    assert world.decide(query(0)).opened
    assert world.firewall.stats(world.now_ns).entries == 1


def test_rules_that_go_take_their_counters_along(engine):
    world = World(engine, SSH, DNS)
    world.connect(syn(0))
    world.reasons(query(0), query(0), replace(syn(0), tcp_flags=ACK))
    rules = world.firewall.rule_counts()
    assert {rule_id: (count.packets, count.bytes, count.flows) for rule_id, count in rules.items()} == {
        SSH.id: (4, 400, 1),
        DNS.id: (2, 200, 1),
    }
    world.set_rules(DNS)
    assert world.reason(replace(syn(0), tcp_flags=ACK)).name == "REVOKED"
    assert set(world.firewall.rule_counts()) == {DNS.id}
    world.apply(snapshot=True)
    assert world.firewall.rule_counts() == {}


def test_verdicts_are_counted_by_reason_and_explaining_is_not_counted(engine):
    world = World(engine, DNS)
    world.reasons(query(0), query(0), syn(0), replace(syn(0), tcp_flags=ACK), tcp(CLIENT, "10.0.0.8", 22, at=DB, direction=INGRESS))
    counted = {reason.name: count for reason, count in world.firewall.stats(world.now_ns).verdicts.items()}
    assert counted == {"NEW": 1, "ESTABLISHED": 1, "NO_RULE": 1, "INVALID_STATE": 1, "NOT_LOCAL": 1}


def test_dead_flows_are_found_however_often_there_was_none(engine):
    world = World(engine, DNS, SSH, server_flows_max=4)
    for number in range(4):
        world.open_answered(query(number))
    world.advance(50)
    world.reason(query(0))
    world.advance(10)
    world.reasons(query(1), query(2), query(3))
    world.advance(65)  # past the first deadlines, all of which were renewed
    assert world.reason(syn(0)).name == "TABLE_FULL"
    world.advance(45)
    assert world.decide(syn(0)).opened
