"""What is decided about a packet without looking at rules or flows: is it possible at all, and is it an essential service?

Where the contract is silent:

- The flags that no stack sends are the four cases it lists; "none" means none of SYN, FIN, RST and ACK (what nf_conntrack
  calls "none"). A FIN without ACK is a FIN.
- ICMP in an IPv6 packet, ICMPv6 in an IPv4 packet and numbers that do not fit their header field are impossible as well.
- ICMP errors are types 3, 4, 5, 11 and 12 (RFC 792, as in nf_conntrack) and, for ICMPv6, 0 to 127 (RFC 4443, section 2.1).
- A later fragment shows no ports, flags or types, so these are not checked, and it is no essential service by itself: with an
  unspecified source it is impossible, otherwise it follows its first fragment.
- The source of whatever row 4 decides is not checked in row 3: of a rogue service too, so that its reason is the telling one.
- The lines of DHCP are about IPv4 and those of DHCPv6 about IPv6; acting as a server of either is denied in both families.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from secgroups.agent.flow import (
    ICMP,
    ICMPV6,
    PROTOCOLS_WITH_PORTS,
    TCP,
    UDP,
    Address,
    Direction,
    Fragment,
    Packet,
    QuotedPacket,
    TcpFlags,
)
from secgroups.agent.tcp import segment_of

_CONTRADICTIONS = (TcpFlags.SYN | TcpFlags.FIN, TcpFlags.SYN | TcpFlags.RST, TcpFlags.FIN | TcpFlags.RST)
_ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})
_ICMPV6_INFORMATIONAL_FIRST = 128
_BROADCAST = 0xFFFF_FFFF

_DHCP_SERVER, _DHCP_CLIENT = 67, 68
_DHCPV6_CLIENT, _DHCPV6_SERVER = 546, 547
_ROUTER_ADVERTISEMENT = 134
# ICMPv6 types: 130-132 and 143 multicast listener, 133 router solicitation, 135 and 136 neighbours.
_ND_EGRESS = frozenset({131, 132, 133, 135, 136, 143})
_ND_INGRESS = frozenset({130, 134, 135, 136})


def is_icmp_error(packet: Packet) -> bool:
    """Whether it is an ICMP message about another packet. A later fragment is not known to be one."""
    if packet.fragment is Fragment.LATER:
        return False
    if packet.protocol == ICMP:
        return packet.icmp_type in _ICMP_ERRORS
    return packet.protocol == ICMPV6 and packet.icmp_type < _ICMPV6_INFORMATIONAL_FIRST


def is_broadcast(address: Address) -> bool:
    """Whether it is 255.255.255.255: no subnet is known here, so no directed broadcast either."""
    return address.version == 4 and int(address) == _BROADCAST


def is_for_many(address: Address) -> bool:
    """Whether an address is multicast or broadcast."""
    return address.is_multicast or is_broadcast(address)


def fits_header(packet: Packet | QuotedPacket) -> bool:
    """Whether there are IP headers that could say it; if not, no later fragment could either."""
    return packet.source.version == packet.destination.version and 0 <= packet.protocol <= 255


def find_fault(packet: Packet) -> str:
    """Return why no such packet can exist, empty if it can. The source is checked by ``find_source_fault``."""
    if packet.source.version != packet.destination.version:
        return "source and destination are of different families"
    for address in (packet.source, packet.destination):
        if address.version == 6 and address.ipv4_mapped is not None:
            return f"{address} is an IPv4-mapped address"
    if not 0 <= packet.protocol <= 255:
        return f"protocol {packet.protocol} is not in 0..255"
    if packet.protocol == (ICMPV6 if packet.source.version == 4 else ICMP):
        return f"protocol {packet.protocol} does not exist in IPv{packet.source.version}"
    return "" if packet.fragment is Fragment.LATER else _find_transport_fault(packet)


def _find_transport_fault(packet: Packet) -> str:
    if packet.protocol in PROTOCOLS_WITH_PORTS:
        for port in (packet.source_port, packet.destination_port):
            if not 1 <= port <= 65_535:
                return f"port {port} is not in 1..65535"
    if packet.protocol == TCP:
        return _find_flags_fault(packet.tcp_flags)
    if packet.protocol in (ICMP, ICMPV6):
        if not (0 <= packet.icmp_type <= 255 and 0 <= packet.icmp_code <= 255):
            return f"ICMP type {packet.icmp_type} code {packet.icmp_code} is not in 0..255"
        if is_icmp_error(packet) and packet.quoted is None:
            return f"ICMP error of type {packet.icmp_type} without a quoted header"
    return ""


def _find_flags_fault(tcp_flags: int) -> str:
    for both in _CONTRADICTIONS:
        if tcp_flags & both == both:
            return f"TCP flags {both.name} together"
    return "" if segment_of(tcp_flags) else "TCP without SYN, FIN, RST or ACK"


def find_source_fault(source: Address) -> str:
    """Return why nothing can come from ``source``, empty if it can."""
    if source.is_loopback:
        kind = "a loopback"
    elif source.is_unspecified:
        kind = "an unspecified"
    elif source.is_multicast:
        kind = "a multicast"
    elif is_broadcast(source):
        kind = "a broadcast"
    else:
        return ""
    return f"{source} is {kind} address, nothing comes from it"


def find_rogue_service(packet: Packet) -> str:
    """Return the name of the service that a server must never offer and that ``packet`` belongs to, empty if to none."""
    if packet.direction is not Direction.EGRESS or packet.fragment is Fragment.LATER:
        return ""
    ports = (packet.source_port, packet.destination_port)
    if packet.protocol == UDP and ports == (_DHCP_SERVER, _DHCP_CLIENT):
        return "a DHCP server"
    if packet.protocol == UDP and ports == (_DHCPV6_SERVER, _DHCPV6_CLIENT):
        return "a DHCPv6 server"
    if packet.protocol == ICMPV6 and packet.icmp_type == _ROUTER_ADVERTISEMENT:
        return "a router"
    return ""


def find_essential_service(packet: Packet, own_addresses: AbstractSet[Address]) -> str:
    """Return the name of the essential service that ``packet`` belongs to, empty if to none."""
    if packet.fragment is Fragment.LATER:
        return ""
    egress = packet.direction is Direction.EGRESS
    source = packet.source
    if source.version == 4:
        ports = (_DHCP_CLIENT, _DHCP_SERVER) if egress else (_DHCP_SERVER, _DHCP_CLIENT)
        is_dhcp = packet.protocol == UDP and (packet.source_port, packet.destination_port) == ports
        may_send = not egress or source.is_unspecified or source in own_addresses
        return "DHCP client" if is_dhcp and may_send else ""
    if egress and not (source.is_unspecified or source.is_link_local or source in own_addresses):
        return ""
    ports = (_DHCPV6_CLIENT, _DHCPV6_SERVER) if egress else (_DHCPV6_SERVER, _DHCPV6_CLIENT)
    if packet.protocol == UDP and (packet.source_port, packet.destination_port) == ports:
        return "DHCPv6 client"
    if packet.protocol == ICMPV6 and packet.icmp_type in (_ND_EGRESS if egress else _ND_INGRESS):
        return "neighbour discovery or multicast listener"
    return ""
