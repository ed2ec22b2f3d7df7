"""Which way a recorded packet goes, seen from one server."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from dpkt import pcap

from secgroups.agent.flow import Address, Direction, Packet
from secgroups.agent.wire import UnreadableError
from secgroups.lab.replay.capture import RawFrame
from secgroups.lab.replay.decode import BARE_LINKS, IPV4_KIND, IPV6_KIND, Opened, open_frame, read_packet

# A capture with more senders than this on its links teaches nothing about hardware addresses beyond the first ones.
HARDWARE_MAX = 65_536

_BROADCAST = IPv4Address("255.255.255.255")


def find_own_hardware(frames: Iterable[RawFrame], addresses: frozenset[Address]) -> frozenset[bytes]:
    """Return the hardware addresses that send for the server and for nobody else: one that sends for others too is a router's.

    Raises ``UnknownLinkError`` for frames that can't be read at all.
    """
    own: set[bytes] = set()
    others: set[bytes] = set()
    packed = {address.packed for address in addresses}
    for _, link_type, data in frames:
        # Whether it can be read or not, a frame from a known sender teaches nothing. Nearly all end here.
        if link_type == pcap.DLT_EN10MB:
            kind = data[12:14]
            sent_by = data[26:30] if kind == IPV4_KIND else data[22:38] if kind == IPV6_KIND else b""
            if sent_by and data[6:12] in (own if sent_by in packed else others):
                continue
        elif link_type in BARE_LINKS:
            continue
        try:
            opened = open_frame(link_type, data)
            if not opened.version or not opened.source_hardware:
                continue
            sent_by = opened.data[12:16] if opened.version == 4 else opened.data[8:24]
            if opened.source_hardware in (own if sent_by in packed else others):
                continue
            source = read_packet(opened).source
        except UnreadableError:
            continue
        if source in addresses:
            senders = own
        elif source.is_unspecified or source.is_link_local:
            continue
        else:
            senders = others
        if len(senders) < HARDWARE_MAX:
            senders.add(opened.source_hardware)
    return frozenset(own - others)


class Placement:
    """Tells the direction of packets from the server's ``addresses`` and, where those don't tell, from its ``own_hardware``."""

    def __init__(self, addresses: frozenset[Address], own_hardware: frozenset[bytes]) -> None:
        self._addresses = addresses
        self._own_hardware = own_hardware

    def find_direction(self, packet: Packet, opened: Opened) -> Direction | None:
        """Return the direction of ``packet``, None if it neither comes from the server nor goes to it.

        From the server to itself is egress. What is for many is ingress unless the server sent it. A packet without a source of
        its own (address detection, DHCP) or with a link-local one is the server's if its hardware address is.
        """
        if packet.source in self._addresses:
            return Direction.EGRESS
        if packet.destination in self._addresses:
            return Direction.INGRESS
        if self.depends_on_hardware(packet.source, packet.destination):
            if opened.source_hardware in self._own_hardware:
                return Direction.EGRESS
            if _is_for_many(packet.destination) or opened.destination_hardware in self._own_hardware:
                return Direction.INGRESS
        return None

    def depends_on_hardware(self, source: Address, destination: Address) -> bool:
        """Whether addresses alone don't tell if, and in which direction, a packet is the server's."""
        if source in self._addresses or destination in self._addresses:
            return False
        return _is_for_many(destination) or source.is_unspecified or source.is_link_local

    def guess_direction(self, opened: Opened) -> Direction:
        """Return the direction of a packet that is not the server's, as if it had passed its wire."""
        return Direction.EGRESS if opened.source_hardware in self._own_hardware else Direction.INGRESS


def _is_for_many(destination: Address) -> bool:
    return destination.is_multicast or destination == _BROADCAST
