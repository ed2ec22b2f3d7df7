"""Random lives of rules, members, bindings and connections, lived by the kernel and by the engine; they must agree on every packet.

A longer one by hand: ``SECGROUPS_KERNEL_ROUNDS=1000 pytest tests/kernel/test_differential.py``. A failure names seed and round.
"""

from __future__ import annotations

import os
import random
import sys
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import ACK, SYN, SYN_ACK, error_about, icmp, other, reply, tcp, udp
from rig import ADDRESSES, DB, EGRESS, INGRESS, WEB, Rig, allow

from secgroups.agent.flow import ICMP, ICMPV6, SCTP, TCP, Packet
from secgroups.agent.ruleset import Rule

ROUNDS = int(os.environ.get("SECGROUPS_KERNEL_ROUNDS", "25"))
PACKETS_A_ROUND = 20
CONNECTIONS_MAX = 60

OUTSIDE = ("203.0.113.7", "198.51.100.1", "2001:db8:1::7", "2001:db8:2::1")
INSIDE = tuple(address for addresses in ADDRESSES.values() for address in addresses)
NETWORKS = (
    "0.0.0.0/0", "203.0.0.0/8", "203.0.113.0/24", "203.0.113.6/31", "203.0.113.7/32", "198.51.100.0/28",
    "10.0.0.0/8", "10.0.0.8/29", "::/0", "2001:db8::/32", "2001:db8:1::/48",
    "2001:db8:1::7/128", "2001:db8:2::/47", "2001:db8::/64",
)  # fmt: skip
PORTS = (22, 53, 80, 443, 8080)
GROUPS = ("a", "b", "c", "d")
ICMP_TYPES = {4: (8, 13, 0, 9, 3, 40), 6: (128, 1, 129, 137, 200)}


class Life:
    """What happens, chosen by a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.connections: list[Packet] = []
        self._rules = 0
        self._ports = 10_000

    def rule(self) -> Rule:
        self._rules += 1
        choose = self.random
        protocol = choose.choice((None, TCP, TCP, 17, 17, ICMP, ICMP, SCTP, 47))
        ports = icmp_type = None
        if protocol in (TCP, 17, SCTP) and choose.random() < 0.8:
            first = choose.choice(PORTS)
            ports = (first, choose.choice([first, first + 1, 500, 65_535]) if choose.random() < 0.5 else first)
            ports = (min(ports), max(ports))
        if protocol == ICMP and choose.random() < 0.6:
            icmp_type = (choose.choice((*ICMP_TYPES[4], *ICMP_TYPES[6])), choose.choice((None, 0, 1)))
        remote = choose.random()
        return allow(
            # Not in the order in which they come.
            f"{choose.randrange(1000)}-{self._rules}",
            choose.choice((INGRESS, INGRESS, EGRESS)),
            protocol=protocol,
            ports=ports,
            icmp=icmp_type,
            network=choose.choice(NETWORKS) if remote < 0.5 else "",
            group=choose.choice(GROUPS) if remote > 0.75 else "",
        )

    def rules(self) -> list[Rule]:
        return [self.rule() for _ in range(self.random.randrange(8))]

    def addresses(self) -> list[str]:
        return [address for address in (*OUTSIDE, *INSIDE) if self.random.random() < 0.4]

    def groups(self) -> list[str]:
        return self.random.sample(GROUPS, self.random.randrange(1, 4))

    async def change(self, rig: Rig) -> None:
        match self.random.randrange(4):
            case 0 | 1:
                await rig.change(groups={self.random.choice(GROUPS): self.rules()})
            case 2:
                await rig.change(members={self.random.choice(GROUPS): self.addresses()})
            case 3:
                await rig.change(servers={self.random.choice((WEB, DB)): self.groups()})

    def opening(self) -> Packet:
        version = self.random.choice((4, 6))
        local = self.random.choice([address for address in INSIDE if ip_address(address).version == version])
        remotes = [each for each in (*OUTSIDE, *INSIDE) if ip_address(each).version == version and _host(each) != _host(local)]
        ends = [local, self.random.choice(remotes)]
        self.random.shuffle(ends)
        source, destination = ends
        self._ports += 1
        port = self.random.choice(PORTS) + self.random.randrange(2)
        match self.random.randrange(8):
            case 0 | 1 | 2:
                return tcp(source, destination, port, source_port=self._ports)
            case 3 | 4:
                return udp(source, destination, port, source_port=self._ports)
            case 5 | 6:
                kind = self.random.choice(ICMP_TYPES[version])
                # Requests have code 0; conntrack takes the code for a part of what names an exchange.
                code = 0 if kind in (8, 13, 128) else self.random.randrange(2)
                return icmp(source, destination, kind, code=code, icmp_id=self._ports)
            case _:
                # With somebody outside: between servers, a packet that the other end drops opens a flow in the engine of the first
                # end but no connection in the kernel, and without ports an opening of the other end belongs to that.
                ends = [local, self.random.choice([each for each in remotes if each in OUTSIDE])]
                self.random.shuffle(ends)
                return other(*ends, self.random.choice((47, 50, 99)))

    def packet(self) -> Packet:
        """Return an opening packet, or one of a connection that is open, or was."""
        if self.connections and self.random.random() < 0.6:
            opening = self.random.choice(self.connections)
            if self.random.random() < 0.1 and opening.protocol in (TCP, 17, ICMP):
                return error_about(opening, source=self.random.choice(self.same_version(opening)))
            packet = replace(opening, tcp_flags=ACK) if opening.protocol == TCP else opening
            back = reply(opening, tcp_flags=ACK if opening.protocol == TCP else 0)
            return self.random.choice((packet, back))
        return self.opening()

    def same_version(self, packet: Packet) -> list[str]:
        """Return who may have found something wrong with a packet, its sender aside."""
        everybody = [each for each in (*OUTSIDE, *INSIDE) if ip_address(each).version == packet.source.version]
        return [each for each in everybody if _host(each) != _host(str(packet.source))]

    def opened(self, rig: Rig, opening: Packet) -> None:
        """Go on with a connection whose first packet has passed."""
        if opening.protocol == TCP:
            if not rig.agree(reply(opening, tcp_flags=SYN_ACK)) or not rig.agree(replace(opening, tcp_flags=ACK)):
                return
        elif opening.protocol in (ICMP, ICMPV6) and opening.icmp_type not in (8, 128):
            return
        self.connections = [*self.connections[-CONNECTIONS_MAX:], opening]


def _host(address: str) -> str:
    return next((server for server, addresses in ADDRESSES.items() if address in addresses), "client")


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_kernel_and_the_engine_agree_on_random_lives(rig: Rig, seed: int) -> None:
    life = Life(seed)
    await rig.change(
        groups={group: life.rules() for group in GROUPS}, servers={WEB: ["a"], DB: ["b", "c"]}, members={"a": life.addresses()}
    )
    for turn in range(ROUNDS):
        for _ in range(PACKETS_A_ROUND):
            packet = life.packet()
            try:
                if rig.agree(packet) and (packet.protocol != TCP or packet.tcp_flags == SYN):
                    life.opened(rig, packet)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, round {turn}: {error}; rules {_rules_about(rig, packet)}") from None
        await life.change(rig)


def _rules_about(rig: Rig, packet: Packet) -> list[Rule]:
    names = {_host(str(address)) for address in (packet.source, packet.destination)} - {"client"}
    groups = {group for name in names for group in rig.ruleset.servers[name].group_ids}
    return [rule for group in sorted(groups) for rule in rig.ruleset.groups[group].rules]
