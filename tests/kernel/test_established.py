"""Established connections: what their packets meet on the way, and that the short way lets nothing through that must not pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import reply, udp
from frames import frame
from rig import DB, EGRESS, WEB, Rig, allow

from secgroups.agent.flow import Packet
from secgroups.agent.kernel.netlink import RECEIVE_BYTES, messages, open_socket

WEB4, DB4, CLIENT, OTHER = "10.0.0.9", "10.0.0.5", "203.0.113.7", "198.51.100.1"
DNS, OUT = allow("dns", protocol=17, ports=53), allow("out", EGRESS)
# linux/netfilter/nf_tables.h and nfnetlink.h: what the kernel tells of a traced packet, rule by rule.
_GROUP_TRACE = 1 << (9 - 1)
_TRACE_TABLE, _TRACE_CHAIN, _TRACE_TYPE = 1, 2, 4
_TRACED_RULE = 3
TRACING = """
table inet tracing {
    chain each {
        type filter hook prerouting priority -400
        udp dport != 9 meta nftrace set 1
    }
}
"""


def chains_met(rig: Rig, source: str, packet: Packet, destination: str) -> list[str]:
    """Send a packet that passes; return the chains in which a rule of ours matched it, in order."""
    with open_socket(_GROUP_TRACE) as told:
        assert rig.world.passes(source, frame(packet), destination)
        told.setblocking(False)
        chains = []
        while True:
            try:
                received = told.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return chains
            for message in messages(received):
                found = message.attributes()
                if found[_TRACE_TABLE].startswith(b"secgroups-") and int.from_bytes(found[_TRACE_TYPE]) == _TRACED_RULE:
                    chains.append(found[_TRACE_CHAIN].rstrip(b"\0").decode())


async def test_an_established_packet_meets_no_more_than_its_ends(rig: Rig, tmp_path: Path) -> None:
    await rig.change(groups={"web": [DNS, OUT]}, servers={WEB: ["web"]})
    await rig.stamped()
    opening = udp(CLIENT, WEB4, 53)
    assert rig.passes(opening)
    assert rig.passes(reply(opening))
    (tmp_path / "tracing.nft").write_text(TRACING)
    rig.world.nft("-f", str(tmp_path / "tracing.nft"))
    try:
        came = chains_met(rig, "client", opening, "web")
        went = chains_met(rig, "web", reply(opening), "client")
    finally:
        rig.world.nft("delete", "table", "inet", "tracing")
    assert came[:-1] == ["forward-opener", "forward-answerer"]
    assert went[:-1] == ["forward-opener", "opener", "forward-answerer"]
    assert came[-1] == went[-1]
    assert came[-1].startswith("ingress-")


async def test_a_server_that_answers_as_a_dhcp_server_is_refused_in_a_connection_that_goes_on(rig: Rig) -> None:
    await rig.change(groups={"web": [allow("dhcp", protocol=17, ports=67)]}, servers={WEB: ["web"]})
    await rig.stamped()
    opening = udp(CLIENT, WEB4, 67, source_port=68)
    for _ in range(3):
        assert rig.agree(opening)
        assert not rig.agree(reply(opening))


async def test_an_opener_that_becomes_a_server_is_judged_by_its_rules_at_once(rig: Rig) -> None:
    await rig.change(groups={"web": [DNS], "db": []}, servers={WEB: ["web"]})
    await rig.stamped()
    opening = udp(DB4, WEB4, 53)
    for packet in (opening, reply(opening), opening):
        assert rig.passes(packet)
    await rig.change(servers={DB: ["db"]})
    assert not rig.passes(opening)
    assert not rig.passes(reply(opening))
    await rig.change(groups={"db": [OUT]})
    assert rig.passes(opening)
    assert rig.passes(reply(opening))


@pytest.mark.parametrize("opener", [WEB4, CLIENT])
async def test_a_forged_packet_does_not_ride_on_an_established_connection(rig: Rig, opener: str) -> None:
    await rig.change(groups={"web": [DNS, OUT]}, servers={WEB: ["web"]})
    await rig.stamped()
    opening = udp(opener, CLIENT if opener == WEB4 else WEB4, 53)
    for packet in (opening, reply(opening), opening):
        assert rig.passes(packet)
    forged = opening if opener == WEB4 else reply(opening)
    assert not rig.world.passes("db", frame(forged), "client")
    assert rig.passes(forged)
