"""Rows 10 to 13: what a rule covers, which rule is named, and what opens a flow."""

from __future__ import annotations

import pytest
from agent_world import (
    ACK,
    ANY_EGRESS,
    ANY_INGRESS,
    CLIENT,
    CLIENT6,
    DB,
    EGRESS,
    FIN_ACK,
    INGRESS,
    RST,
    SYN_ACK,
    WEB,
    World,
    icmp,
    other,
    rule,
    tcp,
    udp,
)

from secgroups.agent.flow import ICMP, SCTP, TCP, UDP

MINE, MINE6, WEB4 = "10.0.0.9", "2001:db8::9", "10.0.0.5"
PREFIX = rule("r", INGRESS, TCP, (22, 23), "10.1.0.0/30")


@pytest.mark.parametrize(
    ("expected", "given", "asked"),
    [
        ("NO_RULE", None, tcp(CLIENT, MINE, 22)),
        ("NO_RULE", None, tcp(MINE, CLIENT, 22)),
        # prefix, ports and protocol
        ("NEW", PREFIX, tcp("10.1.0.0", MINE, 22)),
        ("NEW", PREFIX, tcp("10.1.0.3", MINE, 23)),
        ("NO_RULE", PREFIX, tcp("10.1.0.4", MINE, 22)),  # first address past the prefix
        ("NO_RULE", PREFIX, tcp("10.0.255.255", MINE, 22)),  # last before it
        ("NO_RULE", PREFIX, tcp("10.1.0.1", MINE, 21)),
        ("NO_RULE", PREFIX, tcp("10.1.0.1", MINE, 24)),
        ("NO_RULE", PREFIX, tcp("10.1.0.1", MINE, 40_000, source_port=22)),  # the server's port counts
        ("NO_RULE", PREFIX, udp("10.1.0.1", MINE, 22)),
        ("NO_RULE", PREFIX, tcp(MINE, "10.1.0.1", 22)),  # other direction
        # egress: the remote's port
        ("NEW", rule("r", EGRESS, UDP, 53, "10.1.0.1/32"), udp(MINE, "10.1.0.1", 53)),
        ("NO_RULE", rule("r", EGRESS, UDP, 53, "10.1.0.1/32"), udp(MINE, "10.1.0.2", 53)),
        ("NO_RULE", rule("r", EGRESS, UDP, 53, "10.1.0.1/32"), udp(MINE, "10.1.0.1", 40_000, source_port=53)),
        # any protocol, all ports
        ("NEW", ANY_INGRESS, tcp(CLIENT, MINE, 1)),
        ("NEW", ANY_INGRESS, other(CLIENT, MINE, 47)),
        ("NEW", ANY_INGRESS, icmp(CLIENT, MINE, 8)),
        ("NEW", ANY_INGRESS, icmp(CLIENT6, MINE6, 128)),
        ("NO_RULE", ANY_INGRESS, tcp(MINE, CLIENT, 1)),
        ("NEW", rule("r", INGRESS, TCP), tcp(CLIENT, MINE, 65_535)),
        ("NO_RULE", rule("r", INGRESS, TCP), udp(CLIENT, MINE, 65_535)),
        ("NEW", rule("r", INGRESS, SCTP, 3868), other(CLIENT, MINE, SCTP, source_port=9, destination_port=3868)),
        ("NO_RULE", rule("r", INGRESS, SCTP, 3868), other(CLIENT, MINE, SCTP, source_port=9, destination_port=3869)),
        ("NEW", rule("r", INGRESS, 50), other(CLIENT, MINE, 50)),
        ("NO_RULE", rule("r", INGRESS, 50), other(CLIENT, MINE, 51)),
        ("NEW", rule("r", INGRESS, 50), other(CLIENT6, MINE6, 50)),
        # anywhere covers both families, a CIDR one
        ("NEW", rule("r", INGRESS, TCP, 22, "0.0.0.0/0"), tcp(CLIENT, MINE, 22)),
        ("NO_RULE", rule("r", INGRESS, TCP, 22, "0.0.0.0/0"), tcp(CLIENT6, MINE6, 22)),
        ("NEW", rule("r", INGRESS, TCP, 22, "::/0"), tcp(CLIENT6, MINE6, 22)),
        ("NO_RULE", rule("r", INGRESS, TCP, 22, "::/0"), tcp(CLIENT, MINE, 22)),
        ("NEW", rule("r", INGRESS, TCP, 22), tcp(CLIENT6, MINE6, 22)),
        # ICMP of both families
        ("NEW", rule("r", INGRESS, ICMP), icmp(CLIENT, MINE, 8)),
        ("NEW", rule("r", INGRESS, ICMP), icmp(CLIENT6, MINE6, 128)),
        ("NO_RULE", rule("r", INGRESS, ICMP), tcp(CLIENT, MINE, 8)),
        ("NEW", rule("r", INGRESS, ICMP, icmp_type=13), icmp(CLIENT, MINE, 13, code=1)),
        ("NO_RULE", rule("r", INGRESS, ICMP, icmp_type=13), icmp(CLIENT, MINE, 8)),
        ("NEW", rule("r", INGRESS, ICMP, icmp_type=13, icmp_code=1), icmp(CLIENT, MINE, 13, code=1)),
        ("NO_RULE", rule("r", INGRESS, ICMP, icmp_type=13, icmp_code=1), icmp(CLIENT, MINE, 13)),
    ],
    ids=str,
)
def test_a_rule_covers_exactly_its_direction_protocol_ports_and_remote(engine, expected, given, asked):
    world = World(engine, *([given] if given else []))
    assert world.reason(asked).name == expected


@pytest.mark.parametrize(
    ("expected", "asked"),
    [
        ("INVALID_STATE", tcp(CLIENT, MINE, 22, ACK)),
        ("INVALID_STATE", tcp(CLIENT, MINE, 22, SYN_ACK)),
        ("INVALID_STATE", tcp(CLIENT, MINE, 22, FIN_ACK)),
        ("INVALID_STATE", tcp(CLIENT, MINE, 22, RST)),
        ("INVALID_STATE", tcp(MINE, CLIENT, 22, SYN_ACK)),
        *(("INVALID_STATE", icmp(CLIENT, MINE, icmp_type)) for icmp_type in (0, 14, 16, 18)),
        *(("NEW", icmp(CLIENT, MINE, icmp_type)) for icmp_type in (8, 13, 15, 17)),
        *(("INVALID_STATE", icmp(CLIENT6, MINE6, icmp_type)) for icmp_type in (129, 140)),
        *(("NEW", icmp(CLIENT6, MINE6, icmp_type)) for icmp_type in (128, 139)),
        # replies of one family are nothing special in the other
        *(("NEW", icmp(CLIENT, MINE, icmp_type)) for icmp_type in (129, 140)),
        *(("NEW", icmp(MINE, CLIENT, icmp_type)) for icmp_type in (8, 129)),
    ],
    ids=str,
)
def test_what_can_only_follow_something_opens_nothing(engine, expected, asked):
    assert World(engine, ANY_EGRESS, ANY_INGRESS).reason(asked).name == expected


@pytest.mark.parametrize(
    ("opened", "asked"),
    [
        (True, tcp(MINE, CLIENT, 22)),
        (True, udp(MINE, CLIENT, 53)),
        (True, other(MINE, CLIENT, 47)),
        *((True, icmp(MINE, CLIENT, icmp_type)) for icmp_type in (8, 13, 15, 17)),
        *((True, icmp(MINE6, CLIENT6, icmp_type)) for icmp_type in (128, 139)),
        (False, icmp(MINE, CLIENT, 9)),
        (False, icmp(MINE, CLIENT, 128)),
        (False, icmp(MINE6, CLIENT6, 200)),
        (False, udp(MINE, "224.0.0.251", 5353)),
        (False, udp(MINE6, "ff02::fb", 5353)),
        (False, udp(MINE, "255.255.255.255", 69)),
        (False, icmp(MINE, "224.0.0.1", 8)),
        (False, other(MINE, "224.0.0.22", 2)),
        (True, udp(MINE, "10.0.0.255", 69)),  # no subnets are known
        (False, udp(CLIENT, "224.0.0.251", 5353, at=DB, direction=INGRESS)),
    ],
    ids=str,
)
def test_only_what_can_be_answered_opens_a_flow(engine, opened, asked):
    world = World(engine, ANY_EGRESS, ANY_INGRESS)
    verdict = world.decide(asked)
    assert (verdict.reason.name, verdict.opened, world.flow_count()) == ("NEW", opened, int(opened))


def test_a_message_without_reply_opens_nothing_for_the_way_back(engine):
    world = World(engine, ANY_EGRESS)
    assert world.reasons(udp(MINE, "224.0.0.251", 5353), udp("224.0.0.251", MINE, 40_000, source_port=5353)) == [
        "NEW",
        "INVALID_PACKET",
    ]
    assert world.reasons(icmp(MINE, CLIENT, 9), icmp(CLIENT, MINE, 9)) == ["NEW", "NO_RULE"]


def test_the_rule_named_is_the_one_with_the_lowest_id_of_all_groups(engine):
    world = World(engine, rule("2", INGRESS, TCP, 22))
    world.apply(
        groups=(
            world.group("a", rule("3", INGRESS, TCP), rule("1", INGRESS, UDP)),
            world.group("z", rule("1a", INGRESS, TCP, (20, 30))),
        ),
        servers=(world.binding(DB, "a", "db", "z"),),
    )
    assert world.decide(tcp(CLIENT, MINE, 22)).rule_id == "1a"
    assert world.decide(tcp(CLIENT, MINE, 31)).rule_id == "3"
    world.bind(DB, "db", "a")
    assert world.decide(tcp(CLIENT, MINE, 22, source_port=2)).rule_id == "2"


class TestRemoteGroups:
    """A group as remote stands for the addresses of its members, and for nothing else."""

    def world(self, engine):
        world = World(engine, rule("r", INGRESS, TCP, 3306, "group:web"))
        world.apply(groups=(world.group("web", ANY_INGRESS),), sets=(world.members("web", WEB4, "2001:db8::5"),))
        return world

    @pytest.mark.parametrize(
        ("expected", "asked"),
        [
            ("NEW", tcp(WEB4, MINE, 3306)),
            ("NEW", tcp("2001:db8::5", MINE6, 3306)),
            ("NO_RULE", tcp("10.0.0.6", MINE, 3306)),
            ("NO_RULE", tcp(WEB4, MINE, 3307)),  # its rules are not imported
            ("NO_RULE", tcp(CLIENT, MINE, 3306)),
        ],
        ids=str,
    )
    def test_it_covers_its_members(self, engine, expected, asked):
        assert self.world(engine).reason(asked).name == expected

    def test_a_set_that_is_empty_or_not_held_is_nobody(self, engine):
        world = self.world(engine)
        world.apply(sets=(world.members("web"),))
        assert world.reason(tcp(WEB4, MINE, 3306)).name == "NO_RULE"
        world.apply(removed_sets=("web",))
        assert world.reason(tcp(WEB4, MINE, 3306)).name == "NO_RULE"

    def test_a_member_that_joins_is_covered_at_once_and_one_that_leaves_no_more(self, engine):
        world = self.world(engine)
        assert world.reason(tcp("10.0.0.6", MINE, 3306)).name == "NO_RULE"
        world.apply(sets=(world.members("web", "10.0.0.6"),))
        assert world.reasons(tcp("10.0.0.6", MINE, 3306), tcp(WEB4, MINE, 3306)) == ["NEW", "NO_RULE"]


def test_projects_with_the_same_addresses_do_not_meet(engine):
    world = World(engine, ANY_EGRESS)
    world.apply(groups=(world.group("other"),), servers=(world.binding("q/db", "other", addresses=(MINE,)),))
    asked = udp(MINE, CLIENT, 53)
    assert world.decide(asked).opened
    answer = udp(CLIENT, MINE, 40_000, source_port=53)
    assert world.reason(answer).name == "ESTABLISHED"
    assert world.reason(udp(CLIENT, MINE, 40_000, source_port=53, at="q/db", direction=INGRESS)).name == "NO_RULE"
    assert world.reason(udp(MINE, CLIENT, 53, at="q/db", direction=EGRESS)).name == "NO_RULE"


def test_between_two_servers_of_an_agent_each_end_has_its_own_flow(engine):
    world = World(engine, rule("r", INGRESS, TCP, 3306, "10.0.0.5/32"))
    world.apply(groups=(world.group("web", ANY_EGRESS),), servers=(world.binding(WEB, "web"),))
    out = tcp(WEB4, MINE, 3306, at=WEB, direction=EGRESS)
    into = tcp(WEB4, MINE, 3306, at=DB, direction=INGRESS)
    assert (world.decide(out).rule_id, world.decide(into).rule_id) == ("a-egress", "r")
    assert world.flow_count() == 2
