"""Rows 1 to 6 of the verdict table: before rules and flows."""

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
    FIN,
    FIRST,
    INGRESS,
    LATER,
    RST,
    SYN,
    WEB,
    World,
    icmp,
    other,
    tcp,
    udp,
)

from secgroups.agent.flow import ICMP, ICMPV6, SCTP, TcpFlags

MINE, MINE6 = "10.0.0.9", "2001:db8::9"
LINK = "fe80::9"


def at_db(made):
    """Return a packet builder's result as seen at DB, whatever its addresses."""
    return {"at": DB, "direction": made}


IN, OUT = at_db(INGRESS), at_db(EGRESS)


@pytest.mark.parametrize(
    ("expected", "asked"),
    [
        ("UNKNOWN_SERVER", tcp(CLIENT, MINE, 22, at="p/nobody", direction=INGRESS)),
        ("UNKNOWN_SERVER", tcp(CLIENT, MINE, 22, at="q/db", direction=INGRESS)),  # same id in another project
        ("UNKNOWN_SERVER", tcp(CLIENT, MINE, 0, at="p/nobody", direction=INGRESS)),  # row 1 before row 3
        ("NEW", tcp(CLIENT, MINE, 22)),
        # Families and addresses
        ("INVALID_PACKET", tcp(CLIENT, MINE6, 22)),
        ("INVALID_PACKET", tcp(CLIENT6, MINE, 22)),
        ("NEW", tcp(CLIENT6, MINE6, 22)),
        ("INVALID_PACKET", tcp("::ffff:203.0.113.7", MINE6, 22)),
        ("INVALID_PACKET", tcp(MINE6, "::ffff:203.0.113.7", 22, **OUT)),
        ("NEW", tcp("::fffe:203.0.113.7", MINE6, 22)),
        ("INVALID_PACKET", other(CLIENT, MINE, ICMPV6, icmp_type=128)),
        ("INVALID_PACKET", other(CLIENT6, MINE6, ICMP, icmp_type=8)),
        ("NEW", other(CLIENT, MINE, 0)),
        ("NEW", other(CLIENT, MINE, 255)),
        ("INVALID_PACKET", other(CLIENT, MINE, 256)),
        # Ports
        ("INVALID_PACKET", tcp(CLIENT, MINE, 0)),
        ("INVALID_PACKET", tcp(CLIENT, MINE, 22, source_port=0)),
        ("INVALID_PACKET", tcp(CLIENT, MINE, 65_536)),
        ("NEW", tcp(CLIENT, MINE, 65_535, source_port=1)),
        ("INVALID_PACKET", udp(CLIENT, MINE, 0)),
        ("INVALID_PACKET", udp(CLIENT, MINE, 53, source_port=0)),
        ("INVALID_PACKET", other(CLIENT, MINE, SCTP)),
        ("INVALID_PACKET", other(CLIENT, MINE, SCTP, source_port=1)),
        ("NEW", other(CLIENT, MINE, SCTP, source_port=1, destination_port=1)),
        ("NEW", other(CLIENT, MINE, 47)),  # GRE has none
        # TCP flags
        ("INVALID_PACKET", tcp(CLIENT, MINE, 22, SYN | FIN)),
        ("INVALID_PACKET", tcp(CLIENT, MINE, 22, SYN | FIN | ACK)),
        ("INVALID_PACKET", tcp(CLIENT, MINE, 22, SYN | RST)),
        ("INVALID_PACKET", tcp(CLIENT, MINE, 22, FIN | RST)),
        ("INVALID_PACKET", tcp(CLIENT, MINE, 22, 0)),
        ("INVALID_PACKET", tcp(CLIENT, MINE, 22, TcpFlags.PSH | TcpFlags.URG)),
        ("INVALID_STATE", tcp(CLIENT, MINE, 22, FIN)),
        ("INVALID_STATE", tcp(CLIENT, MINE, 22, RST)),
        ("NEW", tcp(CLIENT, MINE, 22, SYN | TcpFlags.ECE | TcpFlags.CWR)),
        # ICMP
        ("INVALID_PACKET", icmp(CLIENT, MINE, 3)),
        ("INVALID_PACKET", icmp(CLIENT, MINE, 4)),
        ("INVALID_PACKET", icmp(CLIENT, MINE, 5)),
        ("INVALID_PACKET", icmp(CLIENT, MINE, 11)),
        ("INVALID_PACKET", icmp(CLIENT, MINE, 12)),
        ("NEW", icmp(CLIENT, MINE, 9)),
        ("NEW", icmp(CLIENT, MINE, 10)),
        ("INVALID_PACKET", icmp(CLIENT6, MINE6, 1)),
        ("INVALID_PACKET", icmp(CLIENT6, MINE6, 2)),
        ("INVALID_PACKET", icmp(CLIENT6, MINE6, 127)),
        ("NEW", icmp(CLIENT6, MINE6, 128)),
        ("INVALID_PACKET", icmp(CLIENT, MINE, 256)),
        ("INVALID_PACKET", icmp(CLIENT, MINE, 8, code=256)),
        # Sources that nothing comes from
        ("INVALID_PACKET", tcp("127.0.0.1", MINE, 22)),
        ("INVALID_PACKET", tcp("127.255.255.255", MINE, 22)),
        ("NEW", tcp("128.0.0.0", MINE, 22)),
        ("INVALID_PACKET", tcp("0.0.0.0", MINE, 22)),
        ("INVALID_PACKET", tcp("224.0.0.1", MINE, 22)),
        ("INVALID_PACKET", tcp("239.255.255.255", MINE, 22)),
        ("NEW", tcp("223.255.255.255", MINE, 22)),
        ("INVALID_PACKET", tcp("255.255.255.255", MINE, 22)),
        ("INVALID_PACKET", tcp("::", MINE6, 22)),
        ("INVALID_PACKET", tcp("::1", MINE6, 22)),
        ("INVALID_PACKET", tcp("ff02::1", MINE6, 22)),
        ("NEW", tcp("::2", MINE6, 22)),
        ("INVALID_PACKET", tcp("127.0.0.1", CLIENT, 22, **OUT)),
        ("INVALID_PACKET", udp("0.0.0.0", "255.255.255.255", 69, **OUT)),
        # Whose packet it is
        ("NEW", tcp(MINE, CLIENT, 22)),
        ("SPOOFED_SOURCE", tcp("10.0.0.8", CLIENT, 22, **OUT)),
        ("SPOOFED_SOURCE", tcp("2001:db8::8", CLIENT6, 22, **OUT)),
        ("NOT_LOCAL", tcp(CLIENT, "10.0.0.8", 22, **IN)),
        ("NOT_LOCAL", tcp(CLIENT6, "2001:db8::8", 22, **IN)),
        ("NOT_LOCAL", udp(CLIENT, "10.0.0.255", 53, **IN)),  # no subnets are known
        ("NEW", udp(CLIENT, "255.255.255.255", 5353, **IN)),
        ("NEW", udp(CLIENT, "224.0.0.251", 5353, **IN)),
        ("NEW", udp(CLIENT6, "ff02::fb", 5353, **IN)),
        ("SPOOFED_SOURCE", udp("10.0.0.8", "224.0.0.251", 5353, **OUT)),
        # A later fragment shows no ports, flags or types, but its addresses are checked
        ("UNKNOWN_FRAGMENT", tcp(CLIENT, MINE, 0, 0, source_port=0, fragment=LATER)),
        ("UNKNOWN_FRAGMENT", icmp(CLIENT, MINE, 3, fragment=LATER)),
        ("INVALID_PACKET", udp("0.0.0.0", "255.255.255.255", 0, source_port=0, fragment=LATER, **OUT)),
        ("SPOOFED_SOURCE", udp("10.0.0.8", CLIENT, 0, source_port=0, fragment=LATER, **OUT)),
        ("NOT_LOCAL", udp(CLIENT, "10.0.0.8", 0, source_port=0, fragment=LATER, **IN)),
        ("INVALID_PACKET", tcp(CLIENT, MINE, 0, fragment=FIRST)),
    ],
    ids=str,
)
def test_impossible_and_foreign_packets_are_denied_and_their_neighbours_are_not(engine, expected, asked):
    assert World(engine, ANY_EGRESS, ANY_INGRESS).reason(asked).name == expected


def icmp_out(source, icmp_type, destination="ff02::2"):
    return icmp(source, destination, icmp_type, **OUT)


def icmp_in(source, icmp_type, destination=MINE6):
    return icmp(source, destination, icmp_type, **IN)


def dhcp(source, destination, ports, where):
    return udp(source, destination, ports[1], source_port=ports[0], **where)


ESSENTIAL = [
    dhcp("0.0.0.0", "255.255.255.255", (68, 67), OUT),
    dhcp(MINE, "10.0.0.1", (68, 67), OUT),
    dhcp("10.0.0.1", "255.255.255.255", (67, 68), IN),
    dhcp("10.0.0.1", "10.0.0.77", (67, 68), IN),  # the address on offer is not the server's yet
    dhcp(LINK, "ff02::1:2", (546, 547), OUT),
    dhcp("::", "ff02::1:2", (546, 547), OUT),
    dhcp(MINE6, "2001:db8::1", (546, 547), OUT),
    dhcp("fe80::1", LINK, (547, 546), IN),
    dhcp("2001:db8::1", LINK, (547, 546), IN),
    *(icmp_out(source, icmp_type) for source in ("::", LINK, MINE6) for icmp_type in (131, 132, 133, 135, 136, 143)),
    *(icmp_in(source, icmp_type) for source in ("fe80::1", CLIENT6, "::") for icmp_type in (130, 134, 135, 136)),
    icmp_in("fe80::1", 135, "ff02::1:ff00:9"),
    icmp_in("fe80::1", 136, LINK),
]
ROGUE = [
    dhcp(MINE, "255.255.255.255", (67, 68), OUT),
    dhcp("10.0.0.8", "10.0.0.77", (67, 68), OUT),
    dhcp("0.0.0.0", "255.255.255.255", (67, 68), OUT),
    dhcp(MINE6, "2001:db8::5", (547, 546), OUT),
    icmp_out(LINK, 134, "ff02::1"),
    icmp_out(MINE6, 134, CLIENT6),
    icmp_out("::", 134),
]


@pytest.mark.parametrize("asked", ESSENTIAL, ids=str)
def test_essential_services_pass_without_any_rule_and_are_not_tracked(engine, asked):
    world = World(engine)
    verdict = world.decide(asked)
    assert (verdict.reason.name, verdict.rule_id, verdict.opened) == ("ESSENTIAL", "", False)
    assert world.flow_count() == 0


@pytest.mark.parametrize("asked", ESSENTIAL, ids=str)
def test_essential_services_are_nothing_special_when_switched_off(engine, asked):
    world = World(engine, essential_services=False)
    assert world.reason(asked).name in {"NO_RULE", "INVALID_PACKET", "SPOOFED_SOURCE", "NOT_LOCAL"}


@pytest.mark.parametrize("essential_services", [True, False])
@pytest.mark.parametrize("asked", ROGUE, ids=str)
def test_no_server_may_act_as_dhcp_server_or_router_whatever_the_rules_say(engine, essential_services, asked):
    assert World(engine, ANY_EGRESS, essential_services=essential_services).reason(asked).name == "ROGUE_SERVICE"


@pytest.mark.parametrize(
    ("expected", "asked"),
    [
        ("SPOOFED_SOURCE", dhcp("10.0.0.8", "255.255.255.255", (68, 67), OUT)),  # from a foreign address
        ("NO_RULE", dhcp(MINE, "10.0.0.1", (69, 67), OUT)),
        ("NO_RULE", dhcp(MINE, "10.0.0.1", (68, 68), OUT)),
        ("NO_RULE", dhcp("10.0.0.1", MINE, (68, 67), IN)),  # somebody takes this server for a DHCP server
        ("NO_RULE", dhcp(MINE6, "2001:db8::1", (68, 67), OUT)),  # DHCP is about IPv4
        ("NO_RULE", dhcp(MINE, "10.0.0.1", (546, 547), OUT)),  # DHCPv6 is about IPv6
        ("NO_RULE", dhcp(CLIENT6, MINE6, (546, 547), IN)),
        ("SPOOFED_SOURCE", dhcp("2001:db8::8", "ff02::1:2", (546, 547), OUT)),
        ("NO_RULE", tcp("10.0.0.1", MINE, 68, source_port=67)),
        ("SPOOFED_SOURCE", icmp_out("2001:db8::8", 135)),
        ("SPOOFED_SOURCE", icmp_out("febf:ffff::1", 130)),
        ("SPOOFED_SOURCE", icmp_out("fec0::1", 135)),  # the first address past fe80::/10
        ("INVALID_PACKET", icmp_out("ff02::1", 135)),
        ("INVALID_PACKET", icmp_out("::1", 135)),
        ("NO_RULE", icmp_out(MINE6, 130)),  # a server does not query listeners
        ("NO_RULE", icmp_out(MINE6, 137)),  # nor redirect
        ("NO_RULE", icmp_out(MINE6, 128)),
        ("NO_RULE", icmp_in("fe80::1", 133)),  # nor route
        ("NO_RULE", icmp_in("fe80::1", 137)),
        ("NO_RULE", icmp_in("fe80::1", 131)),
        ("NO_RULE", icmp_in("fe80::1", 143)),
        ("NO_RULE", icmp(MINE, CLIENT, 133)),  # the numbers are ICMPv6's
        ("NO_RULE", icmp(MINE, CLIENT, 134)),
        ("ESSENTIAL", dhcp("10.0.0.1", "10.0.0.77", (67, 68), IN)),
        ("NO_RULE", dhcp("10.0.0.1", MINE, (67, 69), IN)),
        ("NO_RULESET", dhcp("0.0.0.0", "255.255.255.255", (68, 67), {"at": WEB, "direction": EGRESS})),  # row 2 before row 4
    ],
    ids=str,
)
def test_neighbours_of_essential_services_are_judged_like_any_packet(engine, expected, asked):
    world = World(engine)
    world.bind(WEB, "db", "not-held")
    assert world.reason(asked).name == expected


def test_a_forged_packet_does_not_ride_on_a_tracked_flow(engine):
    world = World(engine, ANY_EGRESS)
    world.connect(tcp(MINE, CLIENT, 443))
    assert world.reasons(tcp(MINE, CLIENT, 443, ACK), tcp("10.0.0.8", CLIENT, 443, ACK, **OUT)) == ["ESTABLISHED", "SPOOFED_SOURCE"]
    assert world.reason(tcp(CLIENT, "10.0.0.8", 40_000, ACK, source_port=443, **IN)).name == "NOT_LOCAL"


def test_a_server_without_a_group_that_is_held_has_no_ruleset(engine):
    world = World(engine, ANY_INGRESS)
    world.bind(WEB, "db", "not-held")
    assert world.reasons(tcp(CLIENT, "10.0.0.5", 22), tcp(CLIENT, MINE, 22)) == ["NO_RULESET", "NEW"]
    world.apply(groups=(world.group("not-held"),))
    assert world.reason(tcp(CLIENT, "10.0.0.5", 22)).name == "NEW"
    world.apply(removed_groups=("not-held",))
    assert world.reason(tcp(CLIENT, "10.0.0.5", 22, ACK)).name == "NO_RULESET"


def test_the_flows_of_a_server_outlive_a_time_without_ruleset(engine):
    world = World(engine, ANY_INGRESS)
    world.connect(tcp(CLIENT, MINE, 22))
    world.bind(DB, "db", "not-held")
    assert world.reason(tcp(CLIENT, MINE, 22, ACK)).name == "NO_RULESET"
    world.bind(DB, "db")
    assert world.reason(tcp(CLIENT, MINE, 22, ACK)).name == "ESTABLISHED"
