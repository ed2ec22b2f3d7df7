"""The short way from a frame to a record: for plain TCP, UDP and pings, which is nearly all of most captures.

The record is written from the bytes of the frame, without an object for the packet. Whatever is not plain or not whole goes the
long way (``decode``, ``placement``, ``records``), which alone says what a frame means: a test compares both on damaged frames.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

from dpkt import ethernet, pcap

from secgroups.agent.flow import ICMP, ICMPV6, TCP, UDP, Address, Direction
from secgroups.lab.replay.decode import BARE_LINKS, BSD_FAMILY_BYTES, IPV4_KIND, IPV6_KIND
from secgroups.lab.replay.placement import Placement

# When there are more pairs of strangers, all are forgotten and asked about anew.
STRANGERS_MAX = 65_536

_VLAN_KIND = ethernet.ETH_TYPE_8021Q.to_bytes(2)
# Where the EtherType and the IP header are; no EtherType: the version of IP tells as much.
_LINKS: dict[int, tuple[int | None, int]] = {
    pcap.DLT_EN10MB: (12, 14),
    pcap.DLT_LINUX_SLL: (14, 16),
    pcap.DLT_LINUX_SLL2: (0, 20),
    **dict.fromkeys(BARE_LINKS, (None, 0)),
    **dict.fromkeys((pcap.DLT_NULL, pcap.DLT_LOOP), (None, BSD_FAMILY_BYTES)),
}
_KINDS = {4: IPV4_KIND, 6: IPV6_KIND}

# First byte, total or payload length, fragment field (IPv4), protocol, addresses, ports, length and flags of the TCP header.
_IPV4 = struct.Struct("!BxH2xHxB2x4s4sHH8xBB").unpack_from
_IPV6 = struct.Struct("!B3xHBx16s16sHH8xBB").unpack_from
_IPV4_WITHOUT_OPTIONS, _IPV6_VERSION = 0x45, 6
_IPV4_BYTES, _IPV6_BYTES = 20, 40
# More fragments, or an offset.
_FRAGMENTED = 0x3FFF
_UDP_BYTES, _TCP_BYTES, _ECHO_BYTES = 8, 20, 8
# Type and code as one number.
_ECHOES = {ICMP: (0x0000, 0x0800), ICMPV6: (0x8000, 0x8100)}

# Addresses, server, ports, protocol, version, direction, flags, length: the rest of a plain record is zero.
_RECORD4 = struct.Struct("<12s4s12s4sIHHBBBB12xI4x").pack_into
_RECORD6 = struct.Struct("<16s16sIHHBBBB12xI4x").pack_into
# Addresses, server, protocol, version, direction, type, code, identifier, length.
_ECHO_RECORD = struct.Struct("<16s16sI4xBBBxBBH8xI4x").pack_into
_MAPPED = bytes(10) + b"\xff\xff"
_INGRESS, _EGRESS = int(Direction.INGRESS), int(Direction.EGRESS)

# What packets have in common that belong to one flow and go one way: a byte each for protocol and direction, both addresses and
# both ports as they were sent; in place of ports type, code and identifier of a ping.
Lane = bytes
NOT_THE_SERVERS = Lane()
LANE_START_BYTES, LANE_END_BYTES = 2, 4
_TCP_IN, _TCP_OUT, _UDP_IN, _UDP_OUT = (bytes((protocol, way)) for protocol in (TCP, UDP) for way in (_INGRESS, _EGRESS))


class PlainWriter:
    """Writes records of the server with ``addresses`` and ``handle``. With ``everything``, those of others go the long way."""

    def __init__(self, placement: Placement, addresses: frozenset[Address], handle: int, *, everything: bool) -> None:
        self._placement = placement
        self._own = {address.packed for address in addresses}
        self._handle = handle
        self._everything = everything
        self._strangers: dict[bytes, Lane | None] = {}

    def write(self, link_type: int, data: bytes, records: bytearray, end: int) -> Lane | None:
        """Write the record of a frame at ``end`` and return its lane.

        Nothing is written if that is ``NOT_THE_SERVERS``, or None: then the frame must go the long way. Raises nothing.
        """
        link = _LINKS.get(link_type)
        if link is None:
            return None
        kind_at, start = link
        try:
            kind = data[kind_at : kind_at + 2] if kind_at is not None else _KINDS.get(data[start] >> 4)
            if kind == _VLAN_KIND and link_type == pcap.DLT_EN10MB:
                kind, start = data[16:18], 18
            if kind == IPV4_KIND:
                return self._write_ipv4(data, start, records, end)
            return self._write_ipv6(data, start, records, end) if kind == IPV6_KIND else None
        except (struct.error, IndexError):
            # Too short for all that could be in it.
            return None

    def _write_ipv4(self, data: bytes, start: int, records: bytearray, end: int) -> Lane | None:
        first, length, fragmented, protocol, source, destination, from_port, to_port, header, flags = _IPV4(data, start)
        if first != _IPV4_WITHOUT_OPTIONS or fragmented & _FRAGMENTED:
            return None
        # A header that reaches beyond the packet is for the long way to complain about.
        if protocol == TCP and _TCP_BYTES <= (header & 0xF0) >> 2 <= length - _IPV4_BYTES:
            inwards, outwards = _TCP_IN, _TCP_OUT
        elif protocol == UDP and length >= _IPV4_BYTES + _UDP_BYTES:
            inwards, outwards, flags = _UDP_IN, _UDP_OUT, 0
        elif protocol == ICMP and from_port in _ECHOES[ICMP] and length >= _IPV4_BYTES + _ECHO_BYTES:
            body = data[start + _IPV4_BYTES : start + _IPV4_BYTES + _ECHO_BYTES]
            return self._write_echo(protocol, source, destination, body, length, records, end)
        else:
            return None
        if source in self._own:
            way, lane = _EGRESS, outwards
        elif destination in self._own:
            way, lane = _INGRESS, inwards
        else:
            return self._pass_by(source, destination)
        handle = self._handle
        _RECORD4(records, end, _MAPPED, source, _MAPPED, destination, handle, from_port, to_port, protocol, 4, way, flags, length)
        return lane + data[start + 12 : start + 24]

    def _write_ipv6(self, data: bytes, start: int, records: bytearray, end: int) -> Lane | None:
        first, room, protocol, source, destination, from_port, to_port, header, flags = _IPV6(data, start)
        if first >> 4 != _IPV6_VERSION:
            return None
        if protocol == TCP and _TCP_BYTES <= (header & 0xF0) >> 2 <= room:
            inwards, outwards = _TCP_IN, _TCP_OUT
        elif protocol == UDP and room >= _UDP_BYTES:
            inwards, outwards, flags = _UDP_IN, _UDP_OUT, 0
        elif protocol == ICMPV6 and from_port in _ECHOES[ICMPV6] and room >= _ECHO_BYTES:
            body = data[start + _IPV6_BYTES : start + _IPV6_BYTES + _ECHO_BYTES]
            return self._write_echo(protocol, source, destination, body, room + _IPV6_BYTES, records, end)
        else:
            return None
        if source in self._own:
            way, lane = _EGRESS, outwards
        elif destination in self._own:
            way, lane = _INGRESS, inwards
        else:
            return self._pass_by(source, destination)
        length = room + _IPV6_BYTES
        _RECORD6(records, end, source, destination, self._handle, from_port, to_port, protocol, 6, way, flags, length)
        return lane + data[start + 8 : start + 44]

    def _write_echo(
        self, protocol: int, source: bytes, destination: bytes, body: bytes, length: int, records: bytearray, end: int
    ) -> Lane | None:
        if source in self._own:
            way = _EGRESS
        elif destination in self._own:
            way = _INGRESS
        else:
            return self._pass_by(source, destination)
        lane = bytes((protocol, way)) + source + destination + body[:2] + body[4:6]
        version = 4 if protocol == ICMP else 6
        if version == 4:
            source, destination = _MAPPED + source, _MAPPED + destination
        echo_id = int.from_bytes(body[4:6])
        handle = self._handle
        _ECHO_RECORD(records, end, source, destination, handle, protocol, version, way, body[0], body[1], echo_id, length)
        return lane

    def _pass_by(self, source: bytes, destination: bytes) -> Lane | None:
        """Return what to do with a packet that has none of the server's addresses."""
        pair = source + destination
        if pair not in self._strangers:
            if len(self._strangers) >= STRANGERS_MAX:
                self._strangers.clear()
            asked = self._everything or self._placement.depends_on_hardware(ip_address(source), ip_address(destination))
            self._strangers[pair] = None if asked else NOT_THE_SERVERS
        return self._strangers[pair]
