"""Packets as bytes on a wire, with right checksums, from the engine's summaries of them."""

from __future__ import annotations

import struct

from netns import checksum

from secgroups.agent.flow import ICMP, TCP, UDP, Fragment, Packet, QuotedPacket, TcpFlags

# Enough for all that the tests send; conntrack follows windows.
_SEQUENCE, _WINDOW = 1_000, 65_535
_FRAGMENT_HEADER = 44


def frame(packet: Packet, data: bytes = b"") -> bytes:
    """Return the IP packet."""
    return _ip(packet, packet.protocol, _transport(packet, data))


def fragments(packet: Packet, data: bytes, *, identification: int, first_bytes: int | None = None) -> list[bytes]:
    """Return the packet in two fragments, the first with ``first_bytes`` of its payload (a multiple of 8), half unless said."""
    whole = _transport(packet, data)
    cut = (len(whole) // 2 + 7) & ~7 if first_bytes is None else first_bytes
    return [
        fragment(packet, whole[:cut], 0, more=True, identification=identification),
        fragment(packet, whole[cut:], cut, more=False, identification=identification),
    ]


def fragment(packet: Packet, payload: bytes, offset: int, *, more: bool, identification: int) -> bytes:
    """Return a fragment of ``packet`` with what stands at ``offset`` of its payload, a multiple of 8 bytes."""
    if packet.source.version == 4:
        facts = offset // 8 | (0x2000 if more else 0)
        return _ip4(packet, packet.protocol, payload, identification=identification, fragment=facts)
    # RFC 8200, section 4.5.
    header = struct.pack(">BBHI", packet.protocol, 0, offset | more, identification)
    return _ip(packet, _FRAGMENT_HEADER, header + payload)


def _ip(packet: Packet | QuotedPacket, protocol: int, payload: bytes) -> bytes:
    if packet.source.version == 4:
        return _ip4(packet, protocol, payload)
    return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + packet.source.packed + packet.destination.packed + payload


def _ip4(packet: Packet | QuotedPacket, protocol: int, payload: bytes, *, identification: int = 1, fragment: int = 0) -> bytes:
    head = struct.pack(">BBHHHBB", 0x45, 0, 20 + len(payload), identification, fragment, 64, protocol)
    ends = packet.source.packed + packet.destination.packed
    return head + struct.pack(">H", checksum(head + b"\0\0" + ends)) + ends + payload


def _transport(packet: Packet, data: bytes) -> bytes:
    assert packet.fragment is Fragment.NONE
    ports = struct.pack(">HH", packet.source_port, packet.destination_port)
    match packet.protocol:
        case 6:
            sequence = _SEQUENCE if packet.tcp_flags & TcpFlags.SYN else _SEQUENCE + 1
            acknowledged = _SEQUENCE + 1 if packet.tcp_flags & TcpFlags.ACK else 0
            made = ports + struct.pack(">IIBBHHH", sequence, acknowledged, 5 << 4, packet.tcp_flags, _WINDOW, 0, 0) + data
            return _summed(packet, TCP, made, 16)
        case 17:
            return _summed(packet, UDP, ports + struct.pack(">HH", 8 + len(data), 0) + data, 6)
        case 1 | 58:
            rest = _quoted(packet.quoted) if packet.quoted else struct.pack(">HH", packet.icmp_id, 1) + data
            made = struct.pack(">BBH", packet.icmp_type, packet.icmp_code, 0) + rest
            return _summed(packet, packet.protocol, made, 2)
        case 132:  # SCTP
            # An INIT chunk (RFC 9260, section 3.3.2); the CRC is not looked at by those who only forward.
            return _sctp(ports)
        case _:
            return data or b"\0" * 8


def _sctp(ports: bytes) -> bytes:
    made = ports + struct.pack(">II", 0, 0) + struct.pack(">BBHIIHHI", 1, 0, 20, 7, 65_535, 1, 1, 1)
    return made[:8] + struct.pack("<I", _crc32c(made)) + made[12:]


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _quoted(of: QuotedPacket) -> bytes:
    """The rest of an ICMP error: four bytes, and the start of the packet it is about."""
    ports = struct.pack(">HH", of.source_port, of.destination_port)
    if of.protocol == TCP:
        made = ports + struct.pack(">IIBBHHH", _SEQUENCE, 0, 5 << 4, 0, _WINDOW, 0, 0)
    elif of.protocol == UDP:
        made = ports + struct.pack(">HH", 8, 0)
    else:
        made = struct.pack(">BBHHH", of.icmp_type, 0, 0, of.icmp_id, 1)
    return b"\0" * 4 + _ip(of, of.protocol, made)


def _summed(packet: Packet, protocol: int, made: bytes, at: int) -> bytes:
    """Put the checksum at ``at``: over a pseudo header as well, except for ICMP."""
    ends = packet.source.packed + packet.destination.packed
    pseudo = b""
    if protocol != ICMP:
        lengths = (
            struct.pack(">IHBB", len(made), 0, 0, protocol)
            if packet.source.version == 6
            else struct.pack(">BBH", 0, protocol, len(made))
        )
        pseudo = ends + lengths
    value = checksum(pseudo + made) or 0xFFFF
    return made[:at] + struct.pack(">H", value) + made[at + 2 :]
