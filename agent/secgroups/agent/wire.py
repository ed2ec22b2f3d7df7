"""Packets as bytes on a wire: from IP header, transport header and what an ICMP error quotes to what the engine is asked about.

Wherever a header ends too early or says what it can't mean, ``UnreadableError`` tells what and why.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, SCTP, TCP, UDP, Direction, Fragment, Packet, QuotedPacket

_IPV4_HEADER = struct.Struct("!BxHHHxBxx4s4s")
_IPV6_HEADER = struct.Struct("!B3xHBx16s16s")
_FRAGMENT_HEADER = struct.Struct("!BxHI")
_MORE_FRAGMENTS = 0x2000
_OFFSET_MASK = 0x1FFF
# Hop-by-hop options, routing and destination options: their second byte counts units of 8 bytes beyond the first 8 (RFC 8200,
# section 4).
_OPTION_HEADERS = frozenset({0, 43, 60})
_FRAGMENT_KIND, _AUTHENTICATION_KIND = 44, 51

# The shortest transport header that is one, by protocol.
_HEADER_BYTES = {TCP: 20, UDP: 8, SCTP: 12, ICMP: 8, ICMPV6: 4}
# How much of a longer header is read; a capture may have been cut behind that.
_READ_BYTES = {TCP: 14, UDP: 4, SCTP: 4, ICMP: 8, ICMPV6: 4}
_TCP_FLAGS_AT = 13
_ICMP_HEADER_BYTES = 8
# RFC 792 and RFC 4443, section 2.1: the messages about another packet, which follows their header.
_ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})
_ICMPV6_INFORMATIONAL_FIRST = 128
# Messages that have an identifier where the others have something else (RFC 792, RFC 950, RFC 4443, RFC 4620).
_ICMP_WITH_ID = frozenset({0, 8, 13, 14, 15, 16, 17, 18})
_ICMPV6_WITH_ID = frozenset({128, 129, 139, 140})


class UnreadableError(Exception):
    """Bytes that no packet can be read from. ``cut`` tells whether only the recording stopped too early."""

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(message)
        self.cut = cut


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inner:
    """What is inside of an IP header. ``missing`` is how many of its bytes were not recorded."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int
    payload: bytes
    length: int
    missing: int
    fragment: Fragment = Fragment.NONE
    fragment_id: int = 0


def read_packet(version: int, data: bytes) -> Packet:
    """Return the packet that ``data`` begins with, as its sender's server would see it: ``server`` is empty, ``direction`` egress.

    ``version`` is 4 or 6. Raises ``UnreadableError``.
    """
    inner = _read_ip(version, data)
    return _with_transport(_without_transport(inner), inner)


def read_damaged_packet(version: int, data: bytes) -> Packet:
    """Return as ``read_packet`` does, but with a transport header that can't be read left out. Raises ``UnreadableError``."""
    inner = _read_ip(version, data)
    try:
        return _with_transport(_without_transport(inner), inner)
    except UnreadableError:
        return _without_transport(inner)


def _without_transport(inner: _Inner) -> Packet:
    return Packet(
        server="",
        direction=Direction.EGRESS,
        source=inner.source,
        destination=inner.destination,
        protocol=inner.protocol,
        fragment=inner.fragment,
        fragment_id=inner.fragment_id,
        length=inner.length,
    )


def _read_ip(version: int, data: bytes) -> _Inner:
    header = _IPV4_HEADER if version == 4 else _IPV6_HEADER
    if len(data) < header.size:
        raise UnreadableError(f"{len(data)} bytes of an IPv{version} header", cut=True)
    if data[0] >> 4 != version:
        raise UnreadableError(f"an IPv{version} packet that says it is of version {data[0] >> 4}")
    return _read_ipv4(data) if version == 4 else _read_ipv6(data)


def _read_ipv4(data: bytes) -> _Inner:
    first, total, fragment_id, flags_offset, protocol, source, destination = _IPV4_HEADER.unpack_from(data)
    header = (first & 0x0F) * 4
    # With segmentation offload the packet may be longer than its length field can say; then it says 0.
    total = total or len(data)
    if not _IPV4_HEADER.size <= header <= total:
        raise UnreadableError(f"an IPv4 header of {header} bytes in a packet of {total}")
    offset, more = flags_offset & _OFFSET_MASK, bool(flags_offset & _MORE_FRAGMENTS)
    return _Inner(
        source=IPv4Address(source),
        destination=IPv4Address(destination),
        protocol=protocol,
        payload=data[header:total],
        length=total,
        missing=max(0, total - len(data)),
        fragment=_position(offset, more=more),
        fragment_id=fragment_id if offset or more else 0,
    )


def _read_ipv6(data: bytes) -> _Inner:
    _, payload_length, protocol, source, destination = _IPV6_HEADER.unpack_from(data)
    # A jumbogram says 0, and so does what segmentation offload made too long.
    total = _IPV6_HEADER.size + payload_length if payload_length else len(data)
    missing = max(0, total - len(data))
    payload = data[_IPV6_HEADER.size : total]
    fragment, fragment_id = Fragment.NONE, 0
    while fragment is not Fragment.LATER:
        if protocol == _FRAGMENT_KIND:
            _need(payload, _FRAGMENT_HEADER.size, "an IPv6 fragment header", missing)
            protocol, offset_more, fragment_id = _FRAGMENT_HEADER.unpack_from(payload)
            fragment = _position(offset_more >> 3, more=bool(offset_more & 1))
            size = _FRAGMENT_HEADER.size
        elif protocol in _OPTION_HEADERS or protocol == _AUTHENTICATION_KIND:
            _need(payload, 2, "an IPv6 extension header", missing)
            size = (payload[1] + 2) * 4 if protocol == _AUTHENTICATION_KIND else (payload[1] + 1) * 8
            _need(payload, size, "an IPv6 extension header", missing)
            protocol = payload[0]
        else:
            break
        payload = payload[size:]
    return _Inner(
        source=IPv6Address(source),
        destination=IPv6Address(destination),
        protocol=protocol,
        payload=payload,
        length=total,
        missing=missing,
        fragment=fragment,
        # A fragment header on a whole packet (RFC 6946) makes it no fragment.
        fragment_id=fragment_id if fragment else 0,
    )


def _position(offset: int, *, more: bool) -> Fragment:
    if offset:
        return Fragment.LATER
    return Fragment.FIRST if more else Fragment.NONE


def _need(data: bytes, size: int, what: str, missing: int) -> None:
    if len(data) < size:
        raise UnreadableError(f"{len(data)} bytes of {what}", cut=len(data) + missing >= size)


def _with_transport(packet: Packet, inner: _Inner) -> Packet:
    protocol, body = inner.protocol, inner.payload
    if inner.fragment is Fragment.LATER or protocol not in _HEADER_BYTES:
        return packet
    what = f"the header of protocol {protocol}"
    if len(body) + inner.missing < _HEADER_BYTES[protocol]:
        raise UnreadableError(f"{len(body)} bytes of {what}")
    _need(body, _READ_BYTES[protocol], what, inner.missing)
    if protocol in (ICMP, ICMPV6):
        return _with_icmp(packet, inner)
    source_port, destination_port = struct.unpack_from("!HH", body)
    tcp_flags = 0
    if protocol == TCP:
        tcp_flags = body[_TCP_FLAGS_AT]
        header = (body[_TCP_FLAGS_AT - 1] >> 4) * 4
        if not _HEADER_BYTES[TCP] <= header <= len(body) + inner.missing:
            raise UnreadableError(f"a TCP header of {header} bytes in a segment of {len(body) + inner.missing}")
    return replace(packet, source_port=source_port, destination_port=destination_port, tcp_flags=tcp_flags)


def _with_icmp(packet: Packet, inner: _Inner) -> Packet:
    body = inner.payload
    icmp_type, icmp_code = body[0], body[1]
    quoted = None
    if _is_error(inner.protocol, icmp_type):
        quoted = _read_quoted(4 if inner.protocol == ICMP else 6, body[_ICMP_HEADER_BYTES:])
        if quoted is None and inner.missing:
            raise UnreadableError("the header that an ICMP error quotes", cut=True)
    return replace(packet, icmp_type=icmp_type, icmp_code=icmp_code, icmp_id=_icmp_id(inner), quoted=quoted)


def _is_error(protocol: int, icmp_type: int) -> bool:
    return icmp_type in _ICMP_ERRORS if protocol == ICMP else icmp_type < _ICMPV6_INFORMATIONAL_FIRST


def _icmp_id(inner: _Inner) -> int:
    """Return the identifier of a message that has one, else 0."""
    has_id = _ICMP_WITH_ID if inner.protocol == ICMP else _ICMPV6_WITH_ID
    if inner.payload[0] not in has_id:
        return 0
    _need(inner.payload, _ICMP_HEADER_BYTES, f"the header of protocol {inner.protocol}", inner.missing)
    return int.from_bytes(inner.payload[4:6])


def _read_quoted(version: int, data: bytes) -> QuotedPacket | None:
    """Return the header in an ICMP error, None if there is none that can be read: the engine has a verdict for that."""
    try:
        inner = _read_ip(version, data)
        ports, icmp_type, icmp_id = (0, 0), 0, 0
        if inner.fragment is not Fragment.LATER and inner.protocol in (ICMP, ICMPV6):
            _need(inner.payload, _READ_BYTES[inner.protocol], "a quoted header", inner.missing)
            icmp_type, icmp_id = inner.payload[0], _icmp_id(inner)
        elif inner.fragment is not Fragment.LATER and inner.protocol in PROTOCOLS_WITH_PORTS:
            _need(inner.payload, 4, "a quoted header", inner.missing)
            ports = struct.unpack_from("!HH", inner.payload)
    except UnreadableError:
        return None
    return QuotedPacket(
        source=inner.source,
        destination=inner.destination,
        protocol=inner.protocol,
        source_port=ports[0],
        destination_port=ports[1],
        icmp_type=icmp_type,
        icmp_id=icmp_id,
    )
