"""A look at the flow table: which flows are told, and that verdicts may go on meanwhile."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from agent_world import (
    ANY_EGRESS,
    CLIENT,
    CLIENT6,
    DB,
    DNS,
    OTHER,
    PING,
    PING6,
    SSH,
    WEB,
    World,
    icmp,
    other,
    reply,
    tcp,
    udp,
)

from secgroups.agent import FlowFilter
from secgroups.agent.errors import FilterError
from secgroups.agent.flow import ICMP, SCTP, TCP, UDP
from secgroups.agent.table import OPENED_SHIFT, SEEN_SHIFT

DB4, DB6, WEB4 = "10.0.0.9", "2001:db8::9", "10.0.0.5"
FLOWS = {
    "ssh": tcp(CLIENT, DB4, 22),
    "ssh6": tcp(CLIENT6, DB6, 22),
    "dns": udp(OTHER, DB4, 53),
    "ping": icmp(CLIENT, DB4, 8),
    "ping6": icmp(CLIENT6, DB6, 128),
    "gre": other(DB4, CLIENT, 47),
    "sctp": other(DB4, OTHER, SCTP, source_port=5, destination_port=22),
    "web": udp(WEB4, CLIENT, 53),
}


@pytest.fixture
def world(engine: str) -> World:
    """A flow of each of ``FLOWS``; ssh is established, dns answered, ping6 revoked."""
    made = World(engine, ANY_EGRESS, SSH, DNS, PING, PING6)
    made.apply(groups=(made.group("web", ANY_EGRESS),), servers=(made.binding(WEB, "web"),))
    for name, opening in FLOWS.items():
        if name in ("ssh", "dns"):
            made.open_answered(opening)
        else:
            assert made.decide(opening).opened
    made.set_rules(ANY_EGRESS, SSH, DNS, PING)
    assert made.reason(reply(FLOWS["ping6"])).name == "REVOKED"
    return made


def told(world, **wanted):
    """Return the names of the flows that are told, in their order."""
    names = {}
    for name, opening in FLOWS.items():
        ports = (opening.source_port, opening.destination_port)
        names[opening.server, opening.protocol, opening.remote, ports, opening.direction] = name
    found = []
    for flow in world.firewall.live(world.now_ns, FlowFilter(**wanted)):
        key, way = flow.key, flow.opening.direction
        ports = (key.remote_port, key.local_port) if way.name == "INGRESS" else (key.local_port, key.remote_port)
        if key.opened_by is not None:
            ports = (0, 0)
        found.append(names[key.server, key.protocol, key.remote, ports, way])
    return found


@pytest.mark.parametrize(
    ("expected", "wanted"),
    [
        (list(FLOWS), {}),
        ([name for name in FLOWS if name != "web"], {"server": DB}),
        (["web"], {"server": WEB}),
        ([], {"server": "p/nobody"}),
        (["ssh", "ping", "gre", "web"], {"remote": ip_network(f"{CLIENT}/32")}),
        (["ssh", "ping", "gre"], {"remote": ip_network("203.0.113.0/24"), "server": DB}),
        ([], {"remote": ip_network("203.0.113.8/29")}),
        (["ssh6", "ping6"], {"remote": ip_network("::/0")}),
        (["ssh", "ssh6", "sctp"], {"port": 22}),
        (["dns", "web"], {"port": 53}),
        ([], {"port": 40_000}),
        (["ssh", "ssh6"], {"port": 22, "protocol": TCP}),
        (["dns", "web"], {"protocol": UDP}),
        (["ping", "ping6"], {"protocol": ICMP}),
        (["gre"], {"protocol": 47}),
        ([], {"protocol": 0}),
        (["ssh"], {"state": "ESTABLISHED"}),
        (["ssh6"], {"state": "SYN_SENT"}),
        (["dns"], {"state": "ANSWERED"}),
        (["ping", "gre", "sctp", "web"], {"state": "UNANSWERED"}),
        (["ping6"], {"state": "REVOKED"}),
        (["gre", "sctp", "web"], {"rule_id": ANY_EGRESS.id}),
        (["gre", "sctp", "web"], {"rule_id": "a-"}),
        (["ssh", "ssh6"], {"rule_id": "b"}),
        ([], {"rule_id": "-egress"}),
    ],
    ids=str,
)
def test_a_filter_tells_exactly_the_flows_that_are_like_it(world, expected, wanted):
    assert told(world, **wanted) == expected


def test_without_a_filter_all_are_told(world):
    assert len(list(world.firewall.live(world.now_ns))) == len(FLOWS)


def test_a_flow_that_is_over_is_not_told(world):
    world.advance(30)
    assert told(world) == ["ssh", "ssh6", "dns", "gre", "sctp"]


def test_a_flow_is_told_whole(engine):
    world = World(engine, DNS)
    query = udp(OTHER, DB4, 53)
    world.open_answered(query)
    opened_ns = world.now_ns
    world.advance(5)
    assert world.reason(replace(query, length=60)).name == "ESTABLISHED"
    [flow] = world.firewall.live(world.now_ns)
    assert (flow.key.server, str(flow.key.local), flow.key.local_port, str(flow.key.remote), flow.key.remote_port) == (
        DB,
        DB4,
        53,
        OTHER,
        40_000,
    )
    assert (flow.opening.direction.name, flow.state.value, flow.answered, flow.revoked) == ("INGRESS", "ANSWERED", True, False)
    assert (flow.rule_id, flow.group_id) == (DNS.id, "db")
    assert (flow.opener_packets, flow.opener_bytes, flow.answerer_packets, flow.answerer_bytes) == (2, 160, 1, 100)
    assert 0 <= opened_ns - flow.opened_ns < 1 << OPENED_SHIFT
    assert 0 <= world.now_ns - flow.seen_ns < 1 << SEEN_SHIFT
    assert flow.deadline_ns == world.now_ns + 120_000_000_000


def test_verdicts_and_changes_may_go_on_while_flows_are_told(engine):
    world = World(engine, DNS)
    opening = udp(CLIENT, DB4, 53)
    for port in range(1_000, 1_100):
        assert world.decide(replace(opening, source_port=port)).opened
    told = world.firewall.live(world.now_ns)
    seen = [next(told).key.remote_port for _ in range(50)]
    for port in range(2_000, 2_200):
        assert world.decide(replace(opening, source_port=port)).opened
    assert world.reason(replace(reply(opening), destination_port=1_099)).name == "ESTABLISHED"
    rest = list(told)
    assert {flow.key.remote_port for flow in rest} >= set(range(1_000, 1_100)) - set(seen)
    assert [flow.answered for flow in rest if flow.key.remote_port == 1_099] == [True]


def test_flows_that_went_meanwhile_are_not_told(engine):
    world = World(engine, DNS)
    opening = udp(CLIENT, DB4, 53)
    for port in range(1_000, 1_100):
        assert world.decide(replace(opening, source_port=port)).opened
    told = world.firewall.live(world.now_ns)
    assert next(told).key.remote_port in range(1_000, 1_100)
    world.apply(removed_servers=(DB,))
    assert list(told) == []


@pytest.mark.parametrize(
    ("field", "message", "wanted"),
    [
        ("port", "port: 0 is not in 1..65535", {"port": 0}),
        ("port", "port: 65536 is not in 1..65535", {"port": 65_536}),
        ("port", "port: protocol 1 has no ports", {"port": 22, "protocol": ICMP}),
        ("protocol", "protocol: 256 is not in 0..255", {"protocol": 256}),
        ("protocol", "protocol: -1 is not in 0..255", {"protocol": -1}),
        ("protocol", "protocol: 58 is written as 1, which stands for ICMP and ICMPv6", {"protocol": 58}),
        ("state", "state: 'established' is not one of: SYN_SENT, ", {"state": "established"}),
    ],
)
def test_a_filter_that_no_flow_can_be_like_is_refused(field, message, wanted):
    with pytest.raises(FilterError) as caught:
        FlowFilter(**wanted)
    assert caught.value.field == field
    assert str(caught.value).startswith(message)
