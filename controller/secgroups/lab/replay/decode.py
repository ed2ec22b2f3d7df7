"""From a recorded frame to what the engine is asked about: takes the link layer off, the rest is the agent's reader of packets.

The headers are read here and there, not by dpkt's packet classes: those parse payloads that nobody asked for (and raise what they
like on damaged ones), take the inside of a later IPv6 fragment for headers, and give up on the eight bytes of transport header that
an ICMP error quotes. Wherever a header ends too early or says what it can't mean, ``UnreadableError`` tells what and why.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpkt import ethernet, pcap

from secgroups.agent import wire
from secgroups.agent.flow import Packet
from secgroups.agent.wire import UnreadableError

LINK_TYPE_RAW = 101
# Nothing stands before the IP header.
BARE_LINKS = frozenset({LINK_TYPE_RAW, pcap.DLT_RAW, pcap.DLT_IPV4, pcap.DLT_IPV6})

_VLAN_TAGS = frozenset({ethernet.ETH_TYPE_8021Q, ethernet.ETH_TYPE_8021AD, ethernet.ETH_TYPE_QINQ1, ethernet.ETH_TYPE_QINQ2})
IPV4_KIND, IPV6_KIND = (kind.to_bytes(2) for kind in (ethernet.ETH_TYPE_IP, ethernet.ETH_TYPE_IP6))
_IP_VERSIONS = {ethernet.ETH_TYPE_IP: 4, ethernet.ETH_TYPE_IP6: 6}
_LINK_HEADER_BYTES = {pcap.DLT_EN10MB: 14, pcap.DLT_LINUX_SLL: 16, pcap.DLT_LINUX_SLL2: 20}
_VLAN_TAG_BYTES = 4
# Linux cooked headers have room for so much of a hardware address, whatever length they tell.
_COOKED_ADDRESS_BYTES = 8
BSD_FAMILY_BYTES = 4


class UnknownLinkError(Exception):
    """Frames of this link type are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A frame without its link layer. ``version`` is 4, 6, or 0 if it carries no IP.

    The hardware addresses are empty where the link type does not tell them.
    """

    version: int
    data: bytes
    source_hardware: bytes = b""
    destination_hardware: bytes = b""


def open_frame(link_type: int, data: bytes) -> Opened:
    """Take the link layer off a frame. Raises ``UnknownLinkError``, and ``UnreadableError`` if the frame is too short."""
    size = _LINK_HEADER_BYTES.get(link_type, 0)
    if len(data) < size:
        raise UnreadableError(f"{len(data)} bytes of a link-layer header", cut=True)
    if link_type == pcap.DLT_EN10MB:
        version, inside = _untagged(data, _number_at(data, 12), size)
        return Opened(version=version, data=inside, source_hardware=data[6:12], destination_hardware=data[:6])
    if link_type == pcap.DLT_LINUX_SLL:
        version, inside = _untagged(data, _number_at(data, 14), size)
        return Opened(version=version, data=inside, source_hardware=data[6 : 6 + min(_number_at(data, 4), _COOKED_ADDRESS_BYTES)])
    if link_type == pcap.DLT_LINUX_SLL2:
        version, inside = _untagged(data, _number_at(data, 0), size)
        return Opened(version=version, data=inside, source_hardware=data[12 : 12 + min(data[11], _COOKED_ADDRESS_BYTES)])
    if link_type in (pcap.DLT_NULL, pcap.DLT_LOOP):
        # The numbers of families differ between systems; the first byte of the packet does not.
        return _bare(data[BSD_FAMILY_BYTES:])
    if link_type in BARE_LINKS:
        return _bare(data)
    raise UnknownLinkError(
        f"frames of link type {link_type} can't be read; those of Ethernet, Linux cooked capture, raw IP and BSD loopback can"
    )


def read_packet(opened: Opened) -> Packet:
    """Return the packet in a frame, as its sender's server would see it: ``server`` is empty, ``direction`` is egress.

    Raises ``UnreadableError``, also for a frame that carries no IP.
    """
    if opened.version not in (4, 6):
        raise UnreadableError("no IP in it")
    return wire.read_packet(opened.version, opened.data)


def _untagged(data: bytes, kind: int, start: int) -> tuple[int, bytes]:
    """Return IP version and payload of what follows an EtherType, VLAN tags skipped."""
    while kind in _VLAN_TAGS:
        if len(data) < start + _VLAN_TAG_BYTES:
            raise UnreadableError(f"{len(data) - start} bytes of a VLAN tag", cut=True)
        kind = _number_at(data, start + 2)
        start += _VLAN_TAG_BYTES
    return _IP_VERSIONS.get(kind, 0), data[start:]


def _bare(data: bytes) -> Opened:
    if not data:
        raise UnreadableError("an empty frame")
    return Opened(version=data[0] >> 4, data=data)


def _number_at(data: bytes, start: int) -> int:
    """Return the 16 bits at ``start``."""
    return int.from_bytes(data[start : start + 2])
