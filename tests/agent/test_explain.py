"""Section 6: the step that decided, the rule and its group, and the rules that nearly allowed it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_world import (
    ACK,
    ANY_EGRESS,
    CLIENT,
    CLIENT6,
    DB,
    DNS,
    EGRESS,
    FIRST,
    INGRESS,
    LATER,
    PING,
    SSH,
    WEB,
    World,
    error_about,
    icmp,
    other,
    reply,
    rule,
    tcp,
    udp,
)

from secgroups.agent.flow import ICMP, SCTP, TCP, UDP

MINE = "10.0.0.9"
QUERY = udp(CLIENT, MINE, 53)
LOST = udp(CLIENT, MINE, 53, source_port=2)
FIRST_PART = udp(CLIENT, MINE, 53, source_port=3, fragment=FIRST)


def busy(engine):
    world = World(engine, DNS, rule("m", EGRESS, UDP, 5353), server_flows_max=4)
    world.bind(WEB, "not-held")
    for asked in (QUERY, LOST, FIRST_PART):
        world.open_answered(asked)
    return world


@pytest.mark.parametrize(
    ("step", "reason", "rule_id", "text", "asked"),
    [
        (1, "UNKNOWN_SERVER", "", "server p/x is not guarded by this agent", tcp(CLIENT, MINE, 1, at="p/x", direction=INGRESS)),
        (2, "NO_RULESET", "", "the rules of a group of server p/web are not in force yet", tcp(CLIENT, "10.0.0.5", 1)),
        (3, "INVALID_PACKET", "", "impossible packet: port 0 is not in 1..65535", udp(CLIENT, MINE, 0)),
        (3, "INVALID_PACKET", "", "impossible packet: TCP flags FIN|SYN together", tcp(CLIENT, MINE, 1, 3)),
        (4, "ESSENTIAL", "", "essential service: DHCP client", udp(MINE, "10.0.0.1", 67, source_port=68)),
        (4, "ROGUE_SERVICE", "", "a server may not act as a DHCP server", udp(MINE, "10.0.0.1", 68, source_port=67)),
        (5, "SPOOFED_SOURCE", "", "10.0.0.8 is not an address of server p/db", udp("10.0.0.8", CLIENT, 1)),
        (6, "NOT_LOCAL", "", "10.0.0.8 is not an address of server p/db", udp(CLIENT, "10.0.0.8", 1, at=DB, direction=INGRESS)),
        (7, "NEW", DNS.id, "a later fragment gets what its first fragment got: NEW", replace(FIRST_PART, fragment=LATER)),
        (
            7,
            "UNKNOWN_FRAGMENT",
            "",
            "a later fragment whose first fragment was not seen in the last 30 s under the rules in force",
            replace(FIRST_PART, fragment=LATER, fragment_id=9),
        ),
        (
            8,
            "RELATED",
            DNS.id,
            "an ICMP error about a flow which is allowed by ingress UDP 53 from anywhere of db",
            error_about(reply(QUERY)),
        ),
        (
            9,
            "ESTABLISHED",
            DNS.id,
            "belongs to a flow in state ANSWERED, which is allowed by ingress UDP 53 from anywhere of db",
            QUERY,
        ),
        (10, "INVALID_STATE", "", "TCP ACK belongs to no flow", tcp(CLIENT, MINE, 53, ACK)),
        (10, "INVALID_STATE", "", "ICMP reply to no request", icmp(CLIENT, MINE, 0)),
        (11, "NO_RULE", "", f"no ingress rule of db allows TCP 53 from {CLIENT}", tcp(CLIENT, MINE, 53)),
        (11, "NO_RULE", "", f"no egress rule of db allows ICMP type 8 code 0 to {CLIENT}", icmp(MINE, CLIENT, 8)),
        (11, "NO_RULE", "", f"no ingress rule of db allows protocol 47 from {CLIENT}", other(CLIENT, MINE, 47)),
        (
            13,
            "NEW",
            "m",
            "allowed by egress UDP 5353 to anywhere of db; it has no replies and opens no flow",
            udp(MINE, "224.0.0.251", 5353),
        ),
        (13, "NEW", DNS.id, "allowed by ingress UDP 53 from anywhere of db", udp(CLIENT, MINE, 53, source_port=4)),
    ],
    ids=str,
)
def test_it_tells_the_step_the_rule_and_the_grounds(engine, step, reason, rule_id, text, asked):
    world = busy(engine)
    told = world.explain(asked)
    assert (told.step, told.verdict.reason.name, told.verdict.rule_id, told.text) == (step, reason, rule_id, text)
    assert (told.group_id, told.group_name) == (("db", "db") if rule_id else ("", ""))
    assert world.decide(asked) == told.verdict


def test_it_foresees_a_full_table_and_a_revocation_without_causing_either(engine):
    world = busy(engine)
    world.open_answered(udp(CLIENT, MINE, 53, source_port=5))
    full = world.explain(udp(CLIENT, MINE, 53, source_port=6))
    assert (full.step, full.verdict.reason.name) == (12, "TABLE_FULL")
    world.set_rules(SSH)
    before = list(world.firewall.flows.live(world.now_ns))
    told = world.explain(QUERY)
    assert (told.step, told.verdict.reason.name, told.verdict.rule_id, told.group_id) == (9, "REVOKED", DNS.id, "db")
    assert told.text == f"belongs to a flow that is no longer allowed; it last was by rule {DNS.id}, which is gone"
    assert list(world.firewall.flows.live(world.now_ns)) == before


def test_a_segment_without_place_is_explained_by_its_state(engine):
    world = World(engine, SSH)
    world.reason(tcp(CLIENT, MINE, 22))
    told = world.explain(tcp(CLIENT, MINE, 22, ACK))
    assert (told.step, told.text) == (9, "TCP ACK of the opener has no place in state SYN_SENT")


OFFICE = "203.0.113.0/24"


@pytest.mark.parametrize(
    ("failed", "text", "given", "asked"),
    [
        (
            "remote",
            "ingress TCP 22 from 203.0.113.0/24 of db: remote does not match",
            rule("r", INGRESS, TCP, 22, OFFICE),
            tcp("198.51.100.1", MINE, 22),
        ),
        (
            "ports",
            "ingress TCP 8080-8090 from anywhere of db: port does not match",
            rule("r", INGRESS, TCP, (8080, 8090)),
            tcp(CLIENT, MINE, 22),
        ),
        (
            "protocol",
            "ingress UDP 22 from anywhere of db: protocol does not match",
            rule("r", INGRESS, UDP, 22),
            tcp(CLIENT, MINE, 22),
        ),
        (
            "icmp_type",
            "ingress ICMP type 13 from anywhere of db: ICMP type does not match",
            rule("r", INGRESS, ICMP, icmp_type=13),
            icmp(CLIENT, MINE, 8),
        ),
        (
            "icmp_code",
            "ingress ICMP type 8 code 1 from anywhere of db: ICMP code does not match",
            rule("r", INGRESS, ICMP, icmp_type=8, icmp_code=1),
            icmp(CLIENT, MINE, 8),
        ),
        ("remote", "egress any to ::/0 of db: remote does not match", rule("r", EGRESS, None, None, "::/0"), udp(MINE, CLIENT, 53)),
        (
            "remote",
            "ingress SCTP 3868 from group web of db: remote does not match",
            rule("r", INGRESS, SCTP, 3868, "group:g-web"),
            other(CLIENT, MINE, SCTP, source_port=1, destination_port=3868),
        ),
        (
            "remote",
            "ingress protocol 47 from group elsewhere of db: remote does not match",
            rule("r", INGRESS, 47, None, "group:elsewhere"),
            other(CLIENT, MINE, 47),
        ),
    ],
    ids=str,
)
def test_a_rule_that_fails_in_one_field_is_near(engine, failed, text, given, asked):
    world = World(engine, given)
    world.apply(groups=(world.group("g-web", name="web"),))
    told = world.explain(asked)
    assert told.verdict.reason.name == "NO_RULE"
    assert [(miss.rule_id, miss.group_id, miss.failed, miss.text) for miss in told.nearest] == [("r", "db", failed, text)]


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (rule("r", EGRESS, TCP, 22), tcp(CLIENT, MINE, 22)),  # other direction
        (rule("r", INGRESS, TCP, 23, "198.51.100.0/24"), tcp(CLIENT, MINE, 22)),  # two fields
        (rule("r", INGRESS, TCP, 22), icmp(CLIENT, MINE, 8)),  # ICMP has no ports
        (PING, tcp(CLIENT, MINE, 22)),  # TCP has no types
        (rule("r", INGRESS, UDP, 53, "0.0.0.0/0"), tcp(CLIENT6, "2001:db8::9", 53)),
    ],
    ids=str,
)
def test_a_rule_that_fails_in_more_or_goes_the_other_way_is_not_near(engine, given, asked):
    told = World(engine, given).explain(asked)
    assert (told.verdict.reason.name, told.nearest) == ("NO_RULE", ())


def test_at_most_five_rules_are_told_nearest_first(engine):
    rules = [
        rule("1", INGRESS, UDP, 22),
        rule("2", INGRESS, TCP, 23),
        rule("3", INGRESS, TCP, 22, "198.51.100.0/24"),
        rule("5", INGRESS, TCP, 24),
        rule("4", INGRESS, TCP, 22, "192.0.2.0/24"),
        rule("6", INGRESS, SCTP, 22),
    ]
    told = World(engine, *rules).explain(tcp(CLIENT, MINE, 22))
    assert [miss.rule_id for miss in told.nearest] == ["3", "4", "2", "5", "1"]


def test_nearest_rules_are_told_for_no_rule_only(engine):
    world = World(engine, SSH, rule("r", INGRESS, TCP, 23))
    assert world.explain(tcp(CLIENT, MINE, 22)).nearest == ()
    assert world.explain(tcp(CLIENT, MINE, 24, ACK)).nearest == ()


def test_for_a_later_fragment_no_rule_is_near_since_it_does_not_show_what_rules_look_at(engine):
    world = World(engine, rule("r", INGRESS, ICMP, None, "198.51.100.0/24", icmp_type=0))
    first = icmp(CLIENT, MINE, 8, fragment=FIRST)
    assert world.explain(first).nearest == ()  # type and remote fail
    world.reason(first)
    told = world.explain(replace(first, fragment=LATER, icmp_type=0, icmp_id=0))
    assert (told.step, told.verdict.reason.name, told.nearest) == (7, "NO_RULE", ())


def test_a_renamed_group_is_told_by_its_new_name(engine):
    world = World(engine, SSH, ANY_EGRESS)
    world.apply(groups=(world.group("db", SSH, ANY_EGRESS, name="database"),))
    told = world.explain(tcp(CLIENT, MINE, 22))
    assert (told.group_id, told.group_name, told.text) == ("db", "database", "allowed by ingress TCP 22 from anywhere of database")


def test_a_server_in_empty_groups_is_told_so(engine):
    world = World(engine)
    world.bind(DB, "db", "more")
    world.apply(groups=(world.group("more"),))
    assert world.explain(tcp(CLIENT, MINE, 22)).text == f"no ingress rule of db, more allows TCP 22 from {CLIENT}"
