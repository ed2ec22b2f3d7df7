"""Why the kernel does what it does with a packet: the connection that the answer rests on is the kernel's own."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import ACK, LATER, SYN_ACK, error_about, icmp, other, quote, reply, tcp, udp
from rig import DB, EGRESS, INGRESS, SERVER_OF, WEB, Rig, allow

from secgroups.agent.flow import Explanation, Packet, Reason
from secgroups.agent.kernel.explain import explain_in_kernel
from secgroups.agent.kernel.flows import KernelFlows

WEB4, DB4, WEB6 = "10.0.0.9", "10.0.0.5", "2001:db8::9"
CLIENT, OTHER, CLIENT6 = "203.0.113.7", "198.51.100.1", "2001:db8:1::7"
HTTP = allow("http", protocol=6, ports=80)
DNS = allow("dns", protocol=17, ports=53)
PING = allow("ping", protocol=1, icmp=(8, None))
OUT = allow("out", EGRESS, protocol=6)


def explain(rig: Rig, packet: Packet, server: str = WEB) -> Explanation:
    """Return the grounds at ``server``, nothing sent."""
    direction = EGRESS if SERVER_OF.get(str(packet.source)) == server else INGRESS
    flows = KernelFlows(lambda: rig.enforcer.ruleset, essential=True)
    asked = replace(packet, server=server, direction=direction)
    return explain_in_kernel(asked, rig.enforcer.ruleset, flows, time.monotonic_ns())


def grounds(rig: Rig, packet: Packet, server: str = WEB) -> tuple[Reason, str]:
    verdict = explain(rig, packet, server).verdict
    return verdict.reason, verdict.rule_id


async def test_a_packet_of_a_connection_in_the_kernel_is_established_either_way(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP, DNS, PING]}, servers={WEB: ["web"]})
    for opening, rule_id in (
        (tcp(CLIENT, WEB4, 80), "http"),
        (udp(CLIENT6, WEB6, 53), "dns"),
        (icmp(CLIENT, WEB4, 8), "ping"),
    ):
        answer = reply(opening, tcp_flags=SYN_ACK if opening.protocol == 6 else 0)
        assert grounds(rig, opening) == (Reason.NEW, rule_id)
        assert grounds(rig, answer)[0] in (Reason.INVALID_STATE, Reason.NO_RULE)
        assert rig.passes(opening)
        assert grounds(rig, opening) == (Reason.ESTABLISHED, rule_id)
        assert grounds(rig, answer) == (Reason.ESTABLISHED, rule_id)
        assert rig.passes(answer)
        assert grounds(rig, answer) == (Reason.ESTABLISHED, rule_id)


async def test_the_state_of_tcp_is_the_kernels(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    opening = tcp(CLIENT, WEB4, 80)
    for packet in (opening, reply(opening, tcp_flags=SYN_ACK), tcp(CLIENT, WEB4, 80, ACK)):
        assert rig.passes(packet)
    text = explain(rig, tcp(CLIENT, WEB4, 80, ACK)).text
    assert text == "belongs to a flow in state ESTABLISHED, which is allowed by ingress TCP 80 from anywhere of web"
    assert grounds(rig, tcp(CLIENT, WEB4, 80, ACK, source_port=40_001)) == (Reason.INVALID_STATE, "")


async def test_a_connection_that_is_no_longer_allowed_is_revoked_until_its_rule_is_back(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    await rig.stamped()
    assert rig.passes(tcp(CLIENT, WEB4, 80))
    await rig.change(groups={"web": []})
    assert grounds(rig, tcp(CLIENT, WEB4, 80, ACK)) == (Reason.REVOKED, "")
    assert explain(rig, reply(tcp(CLIENT, WEB4, 80), tcp_flags=SYN_ACK)).text == (
        "belongs to a flow that is no longer allowed; it last was by a rule that is not remembered"
    )
    await rig.change(groups={"web": [HTTP]})
    assert grounds(rig, reply(tcp(CLIENT, WEB4, 80), tcp_flags=SYN_ACK)) == (Reason.ESTABLISHED, "http")


async def test_what_conntrack_counts_to_a_revoked_connection_is_not_judged_as_new(rig: Rig) -> None:
    rules = [HTTP, allow("out", EGRESS, protocol=17)]
    await rig.change(groups={"web": rules}, servers={WEB: ["web"]})
    opening, asking = tcp(CLIENT, WEB4, 80), udp(WEB4, CLIENT, 123)
    error = error_about(asking, source=OTHER)
    assert rig.passes(opening)
    assert rig.passes(asking)
    await rig.change(groups={"web": [allow("errors", protocol=1)]})
    for packet in (opening, error):
        assert grounds(rig, packet) == (Reason.REVOKED, "")
        assert not rig.passes(packet)
    assert (await rig.enforcer.counts()).denied == {Reason.REVOKED: 2}
    of_another = replace(error, quoted=replace(quote(asking), source=ip_address(DB4)))
    assert grounds(rig, of_another) == (Reason.NEW, "errors")
    assert rig.passes(of_another)


async def test_a_connection_between_two_servers_is_explained_at_each(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP], "db": [OUT]}, servers={WEB: ["web"], DB: ["db"]})
    assert rig.passes(tcp(DB4, WEB4, 80))
    answer = reply(tcp(DB4, WEB4, 80), tcp_flags=SYN_ACK)
    assert grounds(rig, answer, WEB) == (Reason.ESTABLISHED, "http")
    assert grounds(rig, answer, DB) == (Reason.ESTABLISHED, "out")
    await rig.change(groups={"db": []})
    assert grounds(rig, answer, WEB) == (Reason.ESTABLISHED, "http")
    assert grounds(rig, answer, DB) == (Reason.REVOKED, "")


async def test_an_icmp_error_is_related_if_the_kernel_has_the_connection_it_is_about(rig: Rig) -> None:
    await rig.change(groups={"web": [allow("out", EGRESS, protocol=17)]}, servers={WEB: ["web"]})
    error = error_about(udp(WEB4, CLIENT, 123))
    assert grounds(rig, error) == (Reason.NO_RULE, "")
    assert rig.passes(udp(WEB4, CLIENT, 123))
    assert grounds(rig, error) == (Reason.RELATED, "out")


@pytest.mark.parametrize(
    ("expected", "packet"),
    [
        (Reason.INVALID_PACKET, other(CLIENT, WEB4, 58)),
        (Reason.INVALID_PACKET, tcp(CLIENT, WEB4, 80, source_port=0)),
        (Reason.INVALID_PACKET, replace(icmp(CLIENT, WEB4, 3), quoted=None)),
        (Reason.INVALID_STATE, icmp(CLIENT, WEB4, 0)),
        (Reason.NO_RULE, icmp(CLIENT, WEB4, 10)),
        (Reason.NO_RULE, icmp(CLIENT6, WEB6, 200)),
        (Reason.NO_RULE, error_about(icmp(WEB4, CLIENT, 10))),
        (Reason.NO_RULE, other(CLIENT, WEB4, 47)),
        (Reason.NO_RULE, other(CLIENT, WEB4, 132, source_port=7, destination_port=9)),
        (Reason.UNKNOWN_FRAGMENT, other(CLIENT, WEB4, 6, fragment=LATER)),
    ],
    ids=str,
)
async def test_what_conntrack_never_keeps_has_its_grounds_all_the_same(rig: Rig, expected: Reason, packet: Packet) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    assert grounds(rig, packet) == (expected, "")


async def test_a_server_that_is_not_guarded_has_no_connection_looked_up(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    assert rig.passes(tcp(CLIENT, WEB4, 80))
    assert grounds(rig, tcp(CLIENT, WEB4, 80), DB) == (Reason.UNKNOWN_SERVER, "")
