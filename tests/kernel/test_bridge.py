"""Servers on a bridge of the host, as virtual machines usually are: with ``br_netfilter`` what crosses it is judged as well.

web  10.0.0.9  2001:db8::9   ─ to-web    ─┐
db   10.0.0.5  2001:db8::5   ─ to-db     ─┤ br0 10.0.0.1 2001:db8::1
client 10.0.0.77 2001:db8::77 ─ to-client ─┘
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import ACK, SYN_ACK, reply, tcp, udp
from frames import frame
from netns import PROBE_WAIT_S, inside, lacking, probe, run, same
from rig import ADDRESSES, DB, EGRESS, WEB, Rig, allow

from secgroups.agent.flow import Action, Packet

WEB4, DB4, WEB6, DB6 = "10.0.0.9", "10.0.0.5", "2001:db8::9", "2001:db8::5"
CLIENT, CLIENT6 = "10.0.0.77", "2001:db8::77"
HOSTS = {"web": (WEB4, WEB6), "db": (DB4, DB6), "client": (CLIENT, CLIENT6)}
HOST_OF = {address: host for host, addresses in HOSTS.items() for address in addresses}
ETH_P_ALL = 0x0003
_marks = count(1)


class Bridge:
    """The namespace with the bridge, and the far ends of its ports, which are this process's; ``close`` removes them."""

    def __init__(self) -> None:
        self.router = f"sgb{os.getpid()}"
        self._far = f"{self.router}-far"
        self._affinity = os.sched_getaffinity(0)
        self._links: dict[str, socket.socket] = {}
        # On one processor frames stay in order.
        os.sched_setaffinity(0, {min(self._affinity)})
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        made = run("ip", "netns", "list").split()
        for name in (self.router, self._far):
            if name in made:
                run("ip", "netns", "delete", name)
        os.sched_setaffinity(0, self._affinity)

    def _build(self) -> None:
        for name in (self.router, self._far):
            run("ip", "netns", "add", name)
            with inside(name):
                for setting in ("all", "default"):
                    Path(f"/proc/sys/net/ipv6/conf/{setting}/disable_ipv6").write_text("1" if name == self._far else "0")
                    Path(f"/proc/sys/net/ipv6/conf/{setting}/accept_dad").write_text("0")
        run("ip", "-n", self.router, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        run("ip", "-n", self.router, "link", "set", "br0", "up")
        for number, host in enumerate(HOSTS, 1):
            run("ip", "-n", self.router, "link", "add", f"to-{host}", "type", "veth",
                "peer", "name", host, "address", _mac(number).hex(":"), "netns", self._far)  # fmt: skip
            run("ip", "-n", self.router, "link", "set", f"to-{host}", "master", "br0", "up")
            run("ip", "-n", self._far, "link", "set", host, "up")
            run("bridge", "-n", self.router, "fdb", "replace", _mac(number).hex(":"), "dev", f"to-{host}", "master", "static")
            with inside(self._far):
                link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            link.bind((host, 0))
            link.settimeout(PROBE_WAIT_S)
            self._links[host] = link

    def has_address(self) -> None:
        """Give the host an address on the bridge, and so a way to the servers there."""
        for address in ("10.0.0.1/24", "2001:db8::1/64"):
            run("ip", "-n", self.router, "address", "replace", address, "dev", "br0", *(["nodad"] if ":" in address else []))

    def has_none(self) -> None:
        run("ip", "-n", self.router, "address", "flush", "dev", "br0", "scope", "global")

    def passes(self, packet: Packet) -> bool:
        """Send a packet from the host that has its source to the one that has its destination; return whether it arrives."""
        source, destination = (HOST_OF[str(address)] for address in (packet.source, packet.destination))
        last = probe("192.0.2.2", next(_marks))
        self._send(source, destination, frame(packet))
        self._send(source, destination, last)
        passed = False
        while True:
            came, (_, _, way, *_) = self._links[destination].recvfrom(65_536)
            if way == socket.PACKET_OUTGOING:
                continue
            if came[14:] == last:
                return passed
            passed = passed or same(frame(packet), came[14:])

    def _send(self, source: str, destination: str, packet: bytes) -> None:
        ends = (_mac(list(HOSTS).index(host) + 1) for host in (destination, source))
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        self._links[source].send(b"".join(ends) + kind + packet)


def _mac(number: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, number))


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    if why := lacking():
        pytest.skip(why)
    if not Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        pytest.skip("the kernel has no br_netfilter, or it is not loaded")
    made = Bridge()
    try:
        with inside(made.router):
            yield made
    finally:
        made.close()


@pytest.fixture
async def rig(bridge: Bridge) -> AsyncIterator[Rig]:
    bridge.has_address()
    made = Rig(bridge)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()


RULES = {
    "web": [allow("w1", protocol=6, ports=80, network="10.0.0.64/26"), allow("w2", protocol=6, ports=80, network=f"{CLIENT6}/128"),
            allow("w3", EGRESS, protocol=6, ports=5432, group="db")],
    "db": [allow("d1", protocol=6, ports=5432, group="web")],
}  # fmt: skip
MEMBERS = {"web": ADDRESSES[WEB], "db": ADDRESSES[DB]}


@pytest.mark.parametrize(
    ("passes", "packet"),
    [
        (True, tcp(CLIENT, WEB4, 80)),
        (False, tcp(CLIENT, WEB4, 81)),
        (False, tcp(DB4, WEB4, 80)),
        (True, tcp(CLIENT6, WEB6, 80)),
        (False, tcp(CLIENT6, WEB6, 81)),
        (False, tcp(CLIENT, DB4, 5432)),
        (True, tcp(WEB4, DB4, 5432)),
        (True, tcp(WEB6, DB6, 5432)),
        (False, tcp(WEB4, CLIENT, 5432)),
        (False, udp(WEB4, CLIENT, 68, source_port=67)),
    ],
    ids=str,
)
async def test_what_crosses_the_bridge_gets_what_the_rules_say(rig: Rig, bridge: Bridge, passes: bool, packet: Packet) -> None:
    await rig.change(groups=RULES, servers={WEB: ["web"], DB: ["db"]}, members=MEMBERS)
    assert all(verdict.action is Action.ALLOW for verdict in rig.expected(packet)) is passes
    assert bridge.passes(packet) is passes


@pytest.mark.parametrize(("client", "web"), [(CLIENT, WEB4), (CLIENT6, WEB6)])
async def test_a_connection_over_the_bridge_stops_and_goes_on(rig: Rig, bridge: Bridge, client: str, web: str) -> None:
    await rig.change(groups=RULES, servers={WEB: ["web"]}, members=MEMBERS)
    await rig.stamped()
    opening = tcp(client, web, 80)
    there, back = tcp(client, web, 80, ACK), reply(opening, tcp_flags=ACK)
    assert bridge.passes(opening)
    assert bridge.passes(reply(opening, tcp_flags=SYN_ACK))
    assert bridge.passes(there)
    await rig.change(groups={"web": [allow("out", EGRESS)]})
    assert not bridge.passes(there)
    assert not bridge.passes(back)
    await rig.change(groups={"web": RULES["web"]})
    assert bridge.passes(back)
    assert bridge.passes(there)


async def test_a_host_without_an_address_on_the_bridge_lets_no_server_speak(rig: Rig, bridge: Bridge) -> None:
    await rig.change(groups={"web": [allow("in"), allow("out", EGRESS)]}, servers={WEB: ["web"]})
    assert bridge.passes(udp(WEB4, CLIENT, 53))
    bridge.has_none()
    assert not bridge.passes(udp(WEB4, CLIENT, 54))


def test_a_port_of_a_bridge_can_not_hold_a_server_and_that_is_told(bridge: Bridge, tmp_path: Path) -> None:
    interfaces = {"p/web": "to-web", "p/db": "to-db", "p/later": "to-nobody", "p/no": "br0"}
    words = [word for server, name in interfaces.items() for word in ("--interface", f"{server}={name}")]
    # With the interfaces of the namespace under /sys.
    command = ["ip", "netns", "exec", bridge.router, sys.executable, "-m", "secgroups.agent", "--agent-id", "bridged",
               "--state-dir", str(tmp_path), "--listen", f"unix:{tmp_path}/agent", "--enforce", "nftables", *words]  # fmt: skip
    with subprocess.Popen([*command, "--plaintext"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as agent:
        assert agent.stdout is not None
        try:
            told = next((line for line in agent.stdout if "kernel_interfaces_bridged" in line), "it ended without a word of it")
        finally:
            agent.terminate()
    run("nft", "flush", "ruleset")
    assert json.loads(told)["interfaces"] == ["to-db", "to-web"]
