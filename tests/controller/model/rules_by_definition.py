"""Rules as they are written down, and which packets they cover by the words of SEMANTICS 1. It knows nothing of canonical forms.

ICMP stands for ICMPv6 as well: packets of both carry protocol 1 here.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from secgroups.controller.model import ANYWHERE, Address, Direction, GroupRemote, RuleSpec, parse_cidr

ICMP_NUMBERS = (1, 58)
WITH_PORTS = (6, 17, 132)


@dataclass(frozen=True, kw_only=True)
class RawRule:
    """A rule as somebody wrote it; ``remote`` is a CIDR in any spelling, ``anywhere`` or ``group NAME``."""

    direction: str = "INGRESS"
    protocol: int | None = None
    ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    remote: str = "anywhere"

    @property
    def remote_group(self) -> str | None:
        return self.remote.removeprefix("group ") if self.remote.startswith("group ") else None

    def covers(self, packet: Packet) -> bool:
        return (
            self.direction == packet.direction
            and self._covers_protocol(packet)
            and (self.ports is None or (packet.port is not None and self.ports[0] <= packet.port <= self.ports[1]))
            and (self.icmp_type is None or self.icmp_type == packet.icmp_type)
            and (self.icmp_code is None or self.icmp_code == packet.icmp_code)
            and self._covers_remote(packet)
        )

    def _covers_protocol(self, packet: Packet) -> bool:
        return self.protocol is None or packet.protocol == (1 if self.protocol in ICMP_NUMBERS else self.protocol)

    def _covers_remote(self, packet: Packet) -> bool:
        if self.remote == "anywhere":
            return True
        if self.remote_group is not None:
            return self.remote_group in packet.remote_groups
        base, _, length = self.remote.partition("/")
        address = ip_address(base)
        ignored_bits = address.max_prefixlen - int(length or address.max_prefixlen)
        return packet.remote.version == address.version and int(packet.remote) >> ignored_bits == int(address) >> ignored_bits

    @property
    def wrong_fields(self) -> set[str]:
        """The fields for which there can be no such rule."""
        wrong = set()
        if self.protocol is not None and not 0 <= self.protocol <= 255:
            wrong.add("protocol_number")
        if self.ports is not None:
            first, last = self.ports
            if self.protocol not in WITH_PORTS or first > last:
                wrong.add("ports")
            wrong |= {f"ports.{name}" for name, port in (("first", first), ("last", last)) if not 1 <= port <= 65_535}
        for name, value in (("icmp_type", self.icmp_type), ("icmp_code", self.icmp_code)):
            if value is not None and (self.protocol not in ICMP_NUMBERS or not 0 <= value <= 255):
                wrong.add(name)
        if self.icmp_code is not None and self.icmp_type is None:
            wrong.add("icmp_code")
        return wrong

    def spec(self, group_ids: dict[str, str] | None = None, description: str = "") -> RuleSpec:
        """Return what the controller makes of it; groups are called by name unless ``group_ids`` gives their ids."""
        name = self.remote_group
        remote = GroupRemote(group_ids[name] if group_ids else name) if name else ANYWHERE
        return RuleSpec(
            direction=Direction[self.direction],
            protocol=self.protocol,
            ports=self.ports,
            icmp_type=self.icmp_type,
            icmp_code=self.icmp_code,
            remote=remote if name or self.remote == "anywhere" else parse_cidr(self.remote, "cidr"),
            description=description,
        )


@dataclass(frozen=True, kw_only=True)
class Packet:
    """The opening packet of a flow, seen from the server; what its protocol does not have is None."""

    direction: str
    protocol: int
    remote: Address
    port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    remote_groups: frozenset[str] = frozenset()
