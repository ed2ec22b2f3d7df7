"""Cold and warm restarts, and TCP that is accepted mid-stream after a cold one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_world import (
    ACK,
    ANY_EGRESS,
    CLIENT,
    DB,
    DNS,
    EGRESS,
    FIN_ACK,
    FIRST,
    INGRESS,
    LATER,
    RST,
    SSH,
    SYN_ACK,
    WEB,
    World,
    reply,
    rule,
    tcp,
    udp,
)

from secgroups.agent.flow import TCP

MINE = "10.0.0.9"
LOGIN, QUERY = tcp(CLIENT, MINE, 22), udp(CLIENT, MINE, 53)
TYPED, SHOWN = replace(LOGIN, tcp_flags=ACK), reply(LOGIN, tcp_flags=ACK)
FIRST_PART = udp(CLIENT, MINE, 53, fragment=FIRST, fragment_id=1, source_port=9)
LATER_PART = replace(FIRST_PART, fragment=LATER, source_port=0, destination_port=0)


def test_a_warm_restart_changes_no_verdict(engine):
    world = World(engine, SSH, DNS)
    world.connect(LOGIN)
    world.reasons(QUERY, FIRST_PART)
    world.restart(warm=True)
    assert world.reasons(TYPED, SHOWN, reply(QUERY), LATER_PART) == ["ESTABLISHED", "ESTABLISHED", "ESTABLISHED", "NEW"]
    assert world.decide(TYPED).rule_id == SSH.id


def test_a_warm_restart_keeps_a_revoked_flow_revoked(engine):
    world = World(engine, SSH, ANY_EGRESS)
    world.connect(LOGIN)
    world.set_rules(ANY_EGRESS)
    assert world.reason(TYPED).name == "REVOKED"
    world.restart(warm=True)
    assert world.reasons(SHOWN, TYPED) == ["REVOKED", "REVOKED"]
    world.set_rules(SSH)
    assert world.reason(SHOWN).name == "ESTABLISHED"


def test_what_changed_while_the_agent_was_down_counts(engine):
    world = World(engine, SSH, DNS)
    world.connect(LOGIN)
    world.reasons(QUERY, FIRST_PART)
    flows = world.firewall.flows
    world.restart(warm=False)
    world.set_rules(DNS)
    ruleset = world.firewall.ruleset
    world.firewall = type(world.firewall)(world.settings, now_ns=world.now_ns, engine=engine, flows=flows)
    world.apply(snapshot=True, groups=tuple(ruleset.groups.values()), servers=tuple(ruleset.servers.values()))
    assert world.reasons(SHOWN, QUERY, LATER_PART) == ["REVOKED", "ESTABLISHED", "UNKNOWN_FRAGMENT"]


def test_a_server_that_went_while_the_agent_was_down_has_no_flows_left(engine):
    world = World(engine, SSH)
    world.connect(LOGIN)
    flows = world.firewall.flows
    world.firewall = type(world.firewall)(world.settings, now_ns=world.now_ns, engine=engine, flows=flows)
    applied = world.apply(snapshot=True, groups=(world.group("db", SSH),), servers=(world.binding(WEB, "db"),))
    assert (applied.servers_removed, applied.flows_dropped, len(flows)) == ({DB}, 1, 0)


def test_before_the_first_update_a_restarted_firewall_knows_no_server(engine):
    world = World(engine, SSH)
    world.connect(LOGIN)
    world.firewall = type(world.firewall)(world.settings, now_ns=world.now_ns, engine=engine, flows=world.firewall.flows)
    assert world.reason(TYPED).name == "UNKNOWN_SERVER"
    world.apply(groups=(world.group("db", SSH),), servers=(world.binding(DB, "db"),))
    assert world.reason(TYPED).name == "ESTABLISHED"


def test_a_cold_restart_starts_with_an_empty_table(engine):
    world = World(engine, SSH, DNS)
    world.connect(LOGIN)
    world.reasons(QUERY, FIRST_PART)
    world.restart(warm=False)
    assert world.reasons(TYPED, SHOWN, reply(QUERY), LATER_PART) == [
        "INVALID_STATE",
        "INVALID_STATE",
        "NO_RULE",
        "UNKNOWN_FRAGMENT",
    ]


def test_a_successor_with_a_smaller_table_keeps_the_answered_and_the_latest(engine):
    world = World(engine, DNS)
    world.bind(WEB, "db")
    queries = [udp(CLIENT, MINE, 53, source_port=port) for port in range(1, 9)]
    for asked in queries:
        world.advance(1)
        world.decide(asked)
    for asked in (queries[2], queries[0], queries[3]):
        world.advance(1)
        world.reason(reply(asked))
    world.restart(warm=True, flows_max=4)
    assert [asked for asked in queries if world.explain(asked).verdict.reason.name == "ESTABLISHED"] == [
        queries[0],
        queries[2],
        queries[3],
        queries[7],
    ]
    assert world.firewall.stats(world.now_ns).entries == 4
    world.restart(warm=True, flows_max=1000, server_flows_max=4)
    assert world.flow_count() == 4


class TestMidStream:
    """For the first seconds after a cold start, TCP may be taken up where it is."""

    def test_it_is_not_by_default(self, engine):
        assert World(engine, SSH).reason(TYPED).name == "INVALID_STATE"

    @pytest.mark.parametrize(
        ("expected", "rules", "asked"),
        [
            (SSH.id, [SSH], TYPED),
            (SSH.id, [SSH], SHOWN),  # the rules of the other direction
            (SSH.id, [ANY_EGRESS, SSH], TYPED),
            (ANY_EGRESS.id, [ANY_EGRESS, SSH], SHOWN),  # the rules of its own direction first
            ("", [DNS], TYPED),
            ("", [rule("r", INGRESS, TCP, 23)], SHOWN),
            ("", [rule("r", EGRESS, TCP, 22)], SHOWN),  # the remote's port is 40000
            ("", [rule("r", INGRESS, TCP, 22, "198.51.100.0/24")], SHOWN),
            ("", [SSH], replace(LOGIN, tcp_flags=SYN_ACK)),
            ("", [SSH], replace(LOGIN, tcp_flags=FIN_ACK)),
            ("", [SSH], replace(LOGIN, tcp_flags=RST)),
        ],
        ids=str,
    )
    def test_it_is_taken_up_where_the_rules_of_either_direction_allow_it(self, engine, expected, rules, asked):
        world = World(engine, *rules, tcp_loose_s=60)
        verdict = world.decide(asked)
        if not expected:
            assert verdict.reason.name == "INVALID_STATE"
            return
        assert (verdict.reason.name, verdict.rule_id, verdict.opened) == ("NEW", expected, True)
        assert world.firewall.stats(world.now_ns).flows_by_state == {"ESTABLISHED": 1}
        assert world.reasons(reply(asked), asked) == ["ESTABLISHED", "ESTABLISHED"]

    def test_the_time_is_counted_from_the_start(self, engine):
        world = World(engine, SSH, tcp_loose_s=60)
        world.advance(59.999)
        assert world.reason(TYPED).name == "NEW"
        world.advance(0.001)
        assert world.reasons(TYPED, replace(TYPED, source_port=2)) == ["ESTABLISHED", "INVALID_STATE"]

    def test_a_cold_restart_begins_it_anew_and_a_warm_one_does_not(self, engine):
        world = World(engine, SSH, tcp_loose_s=60)
        world.advance(50)
        world.restart(warm=True)
        assert world.reason(TYPED).name == "NEW"
        world.advance(10)
        world.restart(warm=True)
        assert world.reason(replace(TYPED, source_port=2)).name == "INVALID_STATE"
        world.restart(warm=False)
        assert world.reason(replace(TYPED, source_port=2)).name == "NEW"

    @pytest.mark.parametrize("first", [TYPED, SHOWN], ids=["opener", "answering end"])
    def test_the_flow_is_judged_again_by_the_direction_that_allowed_it(self, engine, first):
        world = World(engine, SSH, tcp_loose_s=60)
        world.reason(first)
        world.set_rules(SSH, ANY_EGRESS)
        assert world.reasons(TYPED, SHOWN) == ["ESTABLISHED", "ESTABLISHED"]
        world.set_rules(ANY_EGRESS)
        assert world.reasons(TYPED, SHOWN) == ["REVOKED", "REVOKED"]

    def test_it_needs_room_like_any_flow(self, engine):
        world = World(engine, SSH, tcp_loose_s=60, server_flows_max=4)
        for port in range(1, 5):
            world.reasons(replace(TYPED, source_port=port), replace(SHOWN, destination_port=port))
        assert world.reason(TYPED).name == "TABLE_FULL"

    def test_it_is_unanswered_until_both_ends_were_heard(self, engine):
        world = World(engine, SSH, tcp_loose_s=60, server_flows_max=4)
        for port in range(1, 50):
            assert world.decide(replace(TYPED, source_port=port)).opened
        assert world.flow_count() == 4


def test_flows_of_a_server_that_a_successor_was_not_told_about_make_room_for_others(engine):
    world = World(engine, DNS, flows_max=4)
    world.bind(WEB, "db")
    queries = [udp(CLIENT, MINE, 53, source_port=port) for port in range(1, 5)]
    for asked in (udp(CLIENT, "10.0.0.5", 53), *queries[:3]):
        world.open_answered(asked)
    world.firewall = type(world.firewall)(world.settings, now_ns=world.now_ns, engine=engine, flows=world.firewall.flows)
    world.apply(groups=(world.group("db", DNS),), servers=(world.binding(DB, "db"),))
    assert world.reasons(queries[3], *queries[:3]) == ["NEW", "ESTABLISHED", "ESTABLISHED", "ESTABLISHED"]
