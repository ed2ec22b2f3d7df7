"""A rule as people write it: the words of options and files, made canonical. Pure; groups are named, not numbered.

The checks are those of the API, so that a file is known to be right before the first call. FieldError says what is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_address, ip_network

from secgroups.cli.errors import FieldError, shown

PORT_MAX = 65_535
DESCRIPTION_CHARACTERS_MAX = 512
NAME_CHARACTERS_MAX = 128
DIRECTIONS = ("ingress", "egress")
# Names of protocols and what is stored for the numbers that have one; 58 is ICMPv6, which is part of icmp.
PROTOCOL_NAMES = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmp", "132": "sctp"}
PROTOCOLS_WITH_PORTS = ("tcp", "udp", "sctp")
NUMBER = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
EVERYWHERE = ("0.0.0.0/0", "::/0")
# Ports that nobody should open to the world, and over which protocols they are served.
RISKY_PORTS = {22: ("tcp",), 3389: ("tcp", "udp")}


@dataclass(frozen=True, slots=True)
class Remote:
    """The other side: ``kind`` is "any", "cidr" or "group"; ``value`` a canonical CIDR, or the name or id of a group."""

    kind: str
    value: str = ""

    @property
    def text(self) -> str:
        return {"any": "anywhere", "cidr": self.value, "group": f"group {self.value}"}[self.kind]


ANYWHERE = Remote("any")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleDraft:
    """A rule in canonical words. ``protocol`` is any, tcp, udp, icmp, sctp or a number; ``ports`` is inclusive, None for all."""

    direction: str
    protocol: str
    ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    remote: Remote
    description: str = ""

    def __post_init__(self) -> None:
        if self.ports is not None and self.protocol not in PROTOCOLS_WITH_PORTS:
            raise FieldError("ports", f"only tcp, udp and sctp have ports, {self.protocol} has none: leave them out")
        if self.ports == (1, PORT_MAX):
            object.__setattr__(self, "ports", None)
        for field, value in (("icmp_type", self.icmp_type), ("icmp_code", self.icmp_code)):
            if value is not None and self.protocol != "icmp":
                raise FieldError(field, f"only icmp has it, {self.protocol} has not: leave it out")
        if self.icmp_code is not None and self.icmp_type is None:
            raise FieldError("icmp_code", "needs an icmp_type")
        parse_description(self.description)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for rules that allow the same: all but the description."""
        return (self.direction, self.protocol, self.ports, self.icmp_type, self.icmp_code, self.remote)

    @property
    def ports_text(self) -> str:
        """Return ``22``, ``8080-8090``, ``type 8 code 0``, ``all``, or nothing for a protocol that has no ports."""
        if self.icmp_type is not None:
            return f"type {self.icmp_type}" + ("" if self.icmp_code is None else f" code {self.icmp_code}")
        if self.ports is None:
            return "all" if self.protocol in PROTOCOLS_WITH_PORTS else ""
        return ports_text(self.ports)

    @property
    def text(self) -> str:
        """Return the rule in one line, for example ``ingress tcp 22 from 203.0.113.0/24``."""
        protocol = f"protocol {self.protocol}" if self.protocol.isdigit() else self.protocol
        way = "from" if self.direction == "ingress" else "to"
        ports = "" if self.ports_text == "all" else self.ports_text
        return " ".join(part for part in (self.direction, protocol, ports, way, self.remote.text) if part)

    def risks(self) -> Iterator[str]:
        """Yield a warning for each risky port that this rule opens to everybody."""
        if self.direction != "ingress" or not (self.remote.kind == "any" or self.remote.value in EVERYWHERE):
            return
        for port, protocols in RISKY_PORTS.items():
            reached = self.protocol == "any" or self.protocol in protocols
            if reached and (self.ports is None or self.ports[0] <= port <= self.ports[1]):
                yield f"{self.text}: opens port {port} to everybody; name the addresses that need it"


def ports_text(ports: tuple[int, int]) -> str:
    """Return ``22`` or ``8080-8090``."""
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


def parse_direction(text: str) -> str:
    """Return ingress or egress."""
    if text.lower() not in DIRECTIONS:
        raise FieldError("direction", f"is {shown(text)}, must be ingress or egress")
    return text.lower()


def parse_protocol(text: str) -> str:
    """Return the protocol's canonical word."""
    word = text.lower()
    if word in ("any", *PROTOCOL_NAMES.values()):
        return word
    if not NUMBER.fullmatch(text):
        raise FieldError("protocol", f"is {shown(text)}, must be tcp, udp, icmp (on IPv6 it is ICMPv6), sctp, any or 0 to 255")
    if int(text) > 255:
        raise FieldError("protocol", f"is {text}, must be 0 to 255")
    return PROTOCOL_NAMES.get(text, text)


def parse_ports(text: str) -> tuple[int, int] | None:
    """Return the range of ``22``, ``8080-8090``, or None for ``all``."""
    if text.lower() == "all":
        return None
    first_text, dash, last_text = text.partition("-")
    first, last = (parse_port(part.strip(), "ports") for part in (first_text, last_text if dash else first_text))
    if first > last:
        raise FieldError("ports", f"first port {first} is above last port {last}")
    return first, last


def parse_port(text: str, field: str = "port") -> int:
    """Return a port, 1 to 65535."""
    if not NUMBER.fullmatch(text) or not 1 <= int(text) <= PORT_MAX:
        more = "" if field == "port" else ", a range 8080-8090"
        raise FieldError(field, f"{shown(text)} is no port; a port is a number from 1 to {PORT_MAX}{more}")
    return int(text)


def parse_octet(text: str, field: str) -> int:
    """Return a number from 0 to 255, for ICMP types and codes."""
    if not NUMBER.fullmatch(text) or int(text) > 255:
        raise FieldError(field, f"is {shown(text)}, must be 0 to 255")
    return int(text)


def parse_cidr(text: str) -> Remote:
    """Return the remote of a CIDR or address, host bits cleared, a bare address as /32 or /128."""
    base, slash, length = text.partition("/")
    if slash and not NUMBER.fullmatch(length):
        raise FieldError("remote", f"{shown(text)} is no CIDR: the prefix length must be a plain number")
    try:
        address = ip_address(base)
    except ValueError:
        raise FieldError("remote", f"{shown(text)} is no CIDR: {shown(base)} is no IPv4 or IPv6 address") from None
    if "%" in base:
        raise FieldError("remote", f"{shown(text)} has a scope, which means nothing outside one host")
    try:
        network = ip_network(f"{address}/{length}" if slash else address, strict=False)
    except ValueError:
        raise FieldError("remote", f"{shown(text)} is no CIDR: the prefix length is 0 to {address.max_prefixlen}") from None
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped is not None:
        raise FieldError("remote", f"{shown(text)} is IPv4-mapped; write it as IPv4")
    return Remote("cidr", str(network))


def parse_name(text: str, field: str) -> str:
    """Return ``text`` if a group, a server or an agent can be called that."""
    if not 1 <= len(text) <= NAME_CHARACTERS_MAX:
        raise FieldError(field, f"has {len(text)} characters, must have 1 to {NAME_CHARACTERS_MAX}")
    if not text.isprintable() or "/" in text or text != text.strip():
        raise FieldError(field, f"{shown(text)} is no name: printable characters, no slash, no blank at either end")
    return text


def parse_description(text: str) -> str:
    """Return ``text`` if it can describe something."""
    if len(text) > DESCRIPTION_CHARACTERS_MAX:
        raise FieldError("description", f"has {len(text)} characters, the most allowed is {DESCRIPTION_CHARACTERS_MAX}")
    try:
        # Bytes of an argument that are no text come in as lone surrogates.
        text.encode()
    except UnicodeEncodeError:
        raise FieldError("description", f"{shown(text)} is not valid Unicode") from None
    return text


def is_default(name: str) -> bool:
    """True for every spelling of ``default``."""
    return name.casefold() == "default"
