"""Packets and flows in words."""

from __future__ import annotations

from secgroups.agent.flow import (
    ICMP,
    ICMPV6,
    PROTOCOLS_WITH_PORTS,
    SCTP,
    TCP,
    UDP,
    Address,
    Fragment,
    Packet,
    QuotedPacket,
    TcpFlags,
)

_PROTOCOL_NAMES = {
    0: "hop-by-hop",
    2: "IGMP",
    4: "IPv4-in-IP",
    TCP: "TCP",
    UDP: "UDP",
    41: "IPv6-in-IP",
    47: "GRE",
    50: "ESP",
    51: "AH",
    ICMP: "ICMP",
    ICMPV6: "ICMPv6",
    59: "nothing",
    89: "OSPF",
    103: "PIM",
    112: "VRRP",
    SCTP: "SCTP",
}

_ICMP_NAMES = {
    0: "echo reply",
    3: "unreachable",
    4: "source quench",
    5: "redirect",
    8: "echo request",
    9: "router advertisement",
    10: "router solicitation",
    11: "time exceeded",
    12: "parameter problem",
    13: "timestamp request",
    14: "timestamp reply",
}
_ICMPV6_NAMES = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    4: "parameter problem",
    128: "echo request",
    129: "echo reply",
    130: "multicast listener query",
    131: "multicast listener report",
    132: "multicast listener done",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
    137: "redirect",
    143: "multicast listener report",
}
_NAMES_OF_TYPES = {ICMP: _ICMP_NAMES, ICMPV6: _ICMPV6_NAMES}
# Type and code whose common name says more than the type's.
_CODE_NAMES = {
    (ICMP, 3, 0): "network unreachable",
    (ICMP, 3, 1): "host unreachable",
    (ICMP, 3, 2): "protocol unreachable",
    (ICMP, 3, 3): "port unreachable",
    (ICMP, 3, 4): "fragmentation needed",
    (ICMP, 3, 13): "administratively prohibited",
    (ICMPV6, 1, 0): "no route",
    (ICMPV6, 1, 1): "administratively prohibited",
    (ICMPV6, 1, 3): "address unreachable",
    (ICMPV6, 1, 4): "port unreachable",
}


def protocol_name(protocol: int) -> str:
    """Return the protocol's name, or ``protocol 99``."""
    return _PROTOCOL_NAMES.get(protocol, f"protocol {protocol}")


def end_text(address: Address, port: int | None) -> str:
    """Return ``10.0.0.9:80``, ``[2001:db8::9]:80``, or the bare address if there is no port."""
    if port is None:
        return str(address)
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def packet_text(packet: Packet) -> str:
    """Return what a packet is: ``TCP 198.51.100.7:40001 > 10.0.0.9:80 SYN, 60 bytes``."""
    text = f"{protocol_name(packet.protocol)} {_ends_text(packet, known=packet.fragment is not Fragment.LATER)}"
    if packet.fragment is Fragment.LATER:
        text += " later fragment"
    else:
        text += _kind_text(packet)
        if packet.fragment is Fragment.FIRST:
            text += ", first fragment"
    return f"{text}, {packet.length} bytes"


def icmp_text(protocol: int, icmp_type: int, icmp_code: int) -> str:
    """Return the name of an ICMP message, or its numbers."""
    name = _CODE_NAMES.get((protocol, icmp_type, icmp_code)) or _NAMES_OF_TYPES[protocol].get(icmp_type)
    return name or f"type {icmp_type} code {icmp_code}"


def flags_text(tcp_flags: int) -> str:
    """Return TCP flags as ``SYN,ACK``, or ``no flags``."""
    return ",".join(flag.name or "" for flag in TcpFlags if tcp_flags & flag) or "no flags"


def _ends_text(packet: Packet | QuotedPacket, *, known: bool) -> str:
    has_ports = known and packet.protocol in PROTOCOLS_WITH_PORTS
    source = end_text(packet.source, packet.source_port if has_ports else None)
    destination = end_text(packet.destination, packet.destination_port if has_ports else None)
    return f"{source} > {destination}"


def _kind_text(packet: Packet) -> str:
    if packet.protocol == TCP:
        return f" {flags_text(packet.tcp_flags)}"
    if packet.protocol not in (ICMP, ICMPV6):
        return ""
    text = f" {icmp_text(packet.protocol, packet.icmp_type, packet.icmp_code)}"
    if packet.icmp_id:
        text += f" id {packet.icmp_id}"
    if packet.quoted is not None:
        text += f" about {protocol_name(packet.quoted.protocol)} {_ends_text(packet.quoted, known=True)}"
    return text
