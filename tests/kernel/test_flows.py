"""What the agent tells of the kernel's connections: flows of guarded servers, their states, and the rules that allow them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import ACK, SYN_ACK, icmp, reply, tcp, udp
from netns import World
from rig import DB, EGRESS, INGRESS, WEB, Rig, allow

from secgroups.agent.flow_filter import FlowFilter, state_name
from secgroups.agent.kernel.flows import KernelFlows
from secgroups.agent.tracking import NOT_KNOWN_NS, Flow

WEB4, DB4, WEB6 = "10.0.0.9", "10.0.0.5", "2001:db8::9"
CLIENT, OTHER, CLIENT6 = "203.0.113.7", "198.51.100.1", "2001:db8:1::7"
HTTP = allow("http", protocol=6, ports=80)
DNS = allow("dns", protocol=17, ports=53)
PING = allow("ping", protocol=1)
OUT = allow("out", EGRESS)


@pytest.fixture
def accounting(world: World) -> Iterator[None]:
    """Conntrack counts packets and keeps times of the connections that begin now."""
    files = [Path("/proc/sys/net/netfilter", f"nf_conntrack_{name}") for name in ("acct", "timestamp")]
    for file in files:
        file.write_text("1")
    yield
    for file in files:
        file.write_text("0")


def flows_of(rig: Rig) -> KernelFlows:
    return KernelFlows(lambda: rig.enforcer.ruleset, essential=True)


async def told(rig: Rig, server: str = "") -> list[Flow]:
    return [flow async for piece in flows_of(rig).live(server) for flow in piece]


def summary(flow: Flow) -> tuple[object, ...]:
    key = flow.key
    ends = f"{key.local}:{key.local_port}", f"{key.remote}:{key.remote_port}"
    return key.server, flow.opening.direction, *ends, state_name(flow), flow.answered, flow.rule_id


async def test_flows_have_the_states_of_conntrack_and_the_rules_that_allow_them(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP, DNS, PING, OUT]}, servers={WEB: ["web"]})
    opening = tcp(CLIENT, WEB4, 80, source_port=40_001)
    for packet in (opening, reply(opening, tcp_flags=SYN_ACK), tcp(CLIENT, WEB4, 80, ACK, source_port=40_001)):
        assert rig.passes(packet)
    assert rig.passes(tcp(CLIENT, WEB4, 80, source_port=40_002))
    lookup = udp(CLIENT6, WEB6, 53, source_port=40_003)
    assert rig.passes(lookup)
    assert rig.passes(reply(lookup))
    assert rig.passes(icmp(CLIENT, WEB4, 8))
    assert rig.passes(udp(WEB4, OTHER, 123, source_port=40_004))
    assert sorted(map(summary, await told(rig)), key=str) == sorted(
        [
            (WEB, INGRESS, f"{WEB4}:80", f"{CLIENT}:40001", "ESTABLISHED", True, "http"),
            (WEB, INGRESS, f"{WEB4}:80", f"{CLIENT}:40002", "SYN_SENT", False, "http"),
            (WEB, INGRESS, f"{WEB6}:53", f"{CLIENT6}:40003", "ANSWERED", True, "dns"),
            (WEB, INGRESS, f"{WEB4}:{icmp(CLIENT, WEB4, 8).icmp_id}", f"{CLIENT}:8", "UNANSWERED", False, "ping"),
            (WEB, EGRESS, f"{WEB4}:40004", f"{OTHER}:123", "UNANSWERED", False, "out"),
        ],
        key=str,
    )
    counts = await flows_of(rig).count()
    assert counts.by_state == {"ESTABLISHED": 1, "SYN_SENT": 1, "ANSWERED": 1, "UNANSWERED": 2}
    assert counts.flows_max > 0


async def test_a_connection_between_two_servers_is_a_flow_of_each(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP], "db": [OUT]}, servers={WEB: ["web"], DB: ["db"]})
    assert rig.passes(tcp(DB4, WEB4, 80))
    assert {(flow.key.server, flow.opening.direction, flow.rule_id) for flow in await told(rig)} == {
        (WEB, INGRESS, "http"),
        (DB, EGRESS, "out"),
    }
    assert [(flow.key.server, flow.rule_id) for flow in await told(rig, DB)] == [(DB, "out")]


async def test_a_flow_is_revoked_at_once_and_resumes_when_its_rule_comes_back(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP, DNS]}, servers={WEB: ["web"]})
    await rig.stamped()
    for packet in (tcp(CLIENT, WEB4, 80), udp(CLIENT, WEB4, 53)):
        assert rig.passes(packet)
    await rig.change(groups={"web": [HTTP]})
    assert {(flow.key.protocol, state_name(flow), flow.rule_id) for flow in await told(rig)} == {
        (6, "SYN_SENT", "http"),
        (17, "REVOKED", ""),
    }
    await rig.change(groups={"web": [HTTP, allow("again", protocol=17)]})
    assert {(flow.key.protocol, state_name(flow), flow.rule_id) for flow in await told(rig)} == {
        (6, "SYN_SENT", "http"),
        (17, "UNANSWERED", "again"),
    }


async def test_connections_of_others_and_those_that_were_denied_are_not_told(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    assert rig.passes(udp(CLIENT, DB4, 53))
    assert not rig.passes(udp(CLIENT, WEB4, 53))
    assert rig.passes(tcp(CLIENT, WEB4, 80))
    assert [(str(flow.key.local), flow.opening.port) for flow in await told(rig)] == [(WEB4, 80)]


@pytest.mark.parametrize(
    ("expected", "wanted"),
    [
        ({"http", "dns"}, FlowFilter()),
        ({"http"}, FlowFilter(port=80)),
        (set(), FlowFilter(port=81)),
        ({"dns"}, FlowFilter(remote=ip_network("198.51.100.0/24"))),
        ({"http"}, FlowFilter(remote=ip_network("203.0.113.7/32"))),
        ({"dns"}, FlowFilter(protocol=17)),
        ({"http"}, FlowFilter(state="SYN_SENT")),
        (set(), FlowFilter(state="REVOKED")),
        ({"dns"}, FlowFilter(rule_id="dn")),
    ],
    ids=["none", "port", "port of none", "remote", "address", "protocol", "state", "state of none", "rule"],
)
async def test_filters_fit_the_kernels_flows_as_they_do_the_engines(rig: Rig, expected: set[str], wanted: FlowFilter) -> None:
    await rig.change(groups={"web": [HTTP, DNS]}, servers={WEB: ["web"]})
    assert rig.agree(tcp(CLIENT, WEB4, 80))
    assert rig.agree(udp(OTHER, WEB4, 53))
    assert {flow.rule_id for flow in await told(rig) if wanted.matches(flow)} == expected
    assert {flow.rule_id for flow in rig.firewall.live(rig.now_ns, wanted)} == expected


async def test_packets_bytes_and_age_are_told_if_conntrack_keeps_them(rig: Rig, accounting: None) -> None:
    await rig.change(groups={"web": [DNS]}, servers={WEB: ["web"]})
    opening = udp(CLIENT, WEB4, 53)
    for packet in (opening, opening, reply(opening)):
        assert rig.passes(packet)
    (flow,) = await told(rig)
    assert (flow.opener_packets, flow.opener_bytes, flow.answerer_packets, flow.answerer_bytes) == (2, 56, 1, 28)
    assert 0 < flow.opened_ns <= time.monotonic_ns()
    assert flow.seen_ns == NOT_KNOWN_NS


async def test_without_accounting_counts_are_zero_and_the_age_is_not_known(rig: Rig) -> None:
    await rig.change(groups={"web": [DNS]}, servers={WEB: ["web"]})
    assert rig.passes(udp(CLIENT, WEB4, 53))
    (flow,) = await told(rig)
    assert (flow.opener_packets, flow.opener_bytes, flow.opened_ns) == (0, 0, NOT_KNOWN_NS)


async def test_flows_of_a_server_whose_rules_are_not_held_are_not_called_revoked(rig: Rig) -> None:
    await rig.change(groups={"web": [DNS]}, servers={WEB: ["web"]})
    assert rig.passes(udp(CLIENT, WEB4, 53))
    await rig.change(servers={WEB: ["web", "not-held"]})
    assert [(state_name(flow), flow.rule_id) for flow in await told(rig)] == [("UNANSWERED", "")]


async def test_an_address_that_two_servers_claim_has_no_flows(rig: Rig) -> None:
    await rig.change(groups={"web": [DNS]}, servers={WEB: ["web"]})
    assert rig.passes(udp(CLIENT, WEB4, 53))
    await rig.change(servers={DB: ["web"]}, addresses={DB: [WEB4]})
    assert await told(rig) == []
