"""Packets as the engine sees them, read from what was recorded, from frames made to measure, and from garbage."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import CAPTURES, CLIENT4, CLIENT6, CLIENT_HARDWARE, SERVER4, SERVER6, SERVER_HARDWARE, frames, packets
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, IPOption_NOP, UDPerror
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    _ICMPv6,
)
from scapy.layers.l2 import CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from secgroups.agent.flow import Fragment, Packet, QuotedPacket, TcpFlags
from secgroups.agent.wire import UnreadableError
from secgroups.lab.replay.decode import UnknownLinkError, open_frame, read_packet

ETHERNET, RAW, RAW_OF_LINUX, COOKED, COOKED2, BSD_LOOPBACK, IPV4, IPV6 = 1, 101, 12, 113, 276, 0, 228, 229
SYN, ACK, PSH, FIN, RST = TcpFlags.SYN, TcpFlags.ACK, TcpFlags.PSH, TcpFlags.FIN, TcpFlags.RST
C4, S4, C6, S6 = (ip_address(text) for text in (CLIENT4, SERVER4, CLIENT6, SERVER6))
READERS = {ETHERNET: Ether, COOKED2: CookedLinuxV2}


def decoded(data: bytes, link_type: int = RAW) -> Packet:
    return read_packet(open_frame(link_type, data))


def refused(data: bytes, link_type: int = RAW) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        decoded(data, link_type)
    return caught.value


def test_an_http_connection_is_read_with_ports_and_flags() -> None:
    conversation = [
        (packet.source, packet.source_port, packet.destination_port, packet.tcp_flags) for packet in packets("http_tcp.pcap")
    ]
    assert conversation[:4] == [
        (C4, 40001, 80, SYN),
        (S4, 80, 40001, SYN | ACK),
        (C4, 40001, 80, ACK),
        (C4, 40001, 80, PSH | ACK),
    ]
    assert {(source, flags) for source, _, _, flags in conversation} >= {(C4, FIN | ACK), (S4, FIN | ACK), (S4, PSH | ACK)}
    assert conversation[-2:] == [(C4, 40002, 22, SYN), (S4, 22, 40002, RST | ACK)]


def test_dns_is_read_with_its_ports() -> None:
    assert [(packet.protocol, packet.source_port, packet.destination_port) for packet in packets("dns_udp.pcap")] == [
        (17, 40053, 53),
        (17, 53, 40053),
        (17, 40054, 53),
        (17, 53, 40054),
    ]


@pytest.mark.parametrize(
    ("name", "protocol", "request_type", "reply_type", "length"),
    [("ping.pcap", 1, 8, 0, 84), ("cooked_ping.pcap", 1, 8, 0, 84), ("ping6.pcap", 58, 128, 129, 104)],
)
def test_pings_are_read_with_type_and_identifier(name: str, protocol: int, request_type: int, reply_type: int, length: int) -> None:
    pings = [packet for packet in packets(name) if packet.icmp_id]
    assert {(packet.protocol, packet.length, packet.icmp_code) for packet in pings} == {(protocol, length, 0)}
    assert [(packet.icmp_type, packet.icmp_id) for packet in pings] == (
        [(request_type, 700), (reply_type, 700)] * 3 + [(request_type, 900), (reply_type, 900)] * 2
    )


@pytest.mark.parametrize(
    ("name", "kind", "client", "server"),
    [("icmp_unreachable.pcap", (1, 3, 3), C4, S4), ("icmp6_unreachable.pcap", (58, 1, 4), C6, S6)],
)
def test_port_unreachable_quotes_the_datagram(name: str, kind: tuple[int, int, int], client: object, server: object) -> None:
    errors = [packet for packet in packets(name) if packet.quoted is not None]
    assert [(packet.protocol, packet.icmp_type, packet.icmp_code) for packet in errors] == [kind, kind]
    assert [(packet.source, packet.quoted) for packet in errors] == [
        (server, QuotedPacket(source=client, destination=server, protocol=17, source_port=40099, destination_port=9999)),
        (client, QuotedPacket(source=server, destination=client, protocol=17, source_port=40098, destination_port=9999)),
    ]


def test_fragments_share_an_identification_and_only_the_first_shows_its_type() -> None:
    pieces = [packet for packet in packets("fragments.pcap") if packet.fragment]
    assert [packet.fragment for packet in pieces] == [Fragment.FIRST, Fragment.LATER, Fragment.LATER] * 4
    seen = []
    for place in range(0, 12, 3):
        first, *later = pieces[place : place + 3]
        assert [packet.fragment_id for packet in later] == [first.fragment_id] * 2
        assert [(packet.icmp_type, packet.icmp_id) for packet in later] == [(0, 0)] * 2
        assert [packet.protocol for packet in later] == [first.protocol] * 2
        seen.append((first.source, first.protocol, first.icmp_type, first.icmp_id))
    assert seen == [(C4, 1, 8, 704), (S4, 1, 0, 704), (C6, 58, 128, 706), (S6, 58, 129, 706)]


def test_multicast_listener_reports_are_found_behind_their_hop_by_hop_header() -> None:
    kinds = {(packet.protocol, packet.icmp_type) for packet in packets("ipv6_http.pcap") if packet.destination.is_multicast}
    assert kinds == {(58, 143), (58, 135), (58, 133)}


@pytest.mark.parametrize("name", CAPTURES)
def test_what_was_recorded_is_read_as_scapy_reads_it(name: str) -> None:
    compared = 0
    for frame in frames(name):
        opened = open_frame(frame.link_type, frame.data)
        theirs = READERS[frame.link_type](frame.data)
        assert bool(opened.version) == (IP in theirs or IPv6 in theirs)
        if opened.version:
            assert facts_of(read_packet(opened)) == facts_of_scapy(theirs)
            compared += 1
    assert compared >= 4


def facts_of(packet: Packet) -> dict[str, object]:
    facts: dict[str, object] = {"source": str(packet.source), "destination": str(packet.destination), "length": packet.length}
    if packet.fragment is not Fragment.NONE:
        facts["id"] = packet.fragment_id
    if packet.protocol in (6, 17):
        facts["ports"] = (packet.source_port, packet.destination_port)
    if packet.protocol == 6:
        facts["flags"] = packet.tcp_flags
    if packet.protocol in (1, 58) and packet.fragment is not Fragment.LATER:
        facts["icmp"] = (packet.icmp_type, packet.icmp_code)
    if packet.quoted is not None:
        facts["quoted"] = (str(packet.quoted.source), packet.quoted.source_port, packet.quoted.destination_port)
    return facts


def facts_of_scapy(frame: Raw) -> dict[str, object]:
    outer = frame[IP] if IP in frame else frame[IPv6]
    length = outer.len if IP in frame else outer.plen + 40
    facts: dict[str, object] = {"source": outer.src, "destination": outer.dst, "length": length}
    if IP in frame and (outer.flags.MF or outer.frag):
        facts["id"] = outer.id
    if IPv6ExtHdrFragment in frame:
        facts["id"] = frame[IPv6ExtHdrFragment].id
    for transport in (TCP, UDP):
        if transport in frame:
            facts["ports"] = (frame[transport].sport, frame[transport].dport)
    if TCP in frame:
        facts["flags"] = int(frame[TCP].flags)
    if ICMP in frame:
        facts["icmp"] = (frame[ICMP].type, frame[ICMP].code)
    icmp6 = next((layer for layer in frame.iterpayloads() if isinstance(layer, _ICMPv6)), None)
    if icmp6 is not None:
        facts["icmp"] = (icmp6.type, getattr(icmp6, "code", 0))
    if UDPerror in frame:
        quoted = frame[IPerror] if icmp6 is None else icmp6.payload
        facts["quoted"] = (quoted.src, frame[UDPerror].sport, frame[UDPerror].dport)
    return facts


UDP4 = IP(src=CLIENT4, dst=SERVER4, id=77) / UDP(sport=1000, dport=53) / b"payload"
UDP6 = IPv6(src=CLIENT6, dst=SERVER6) / UDP(sport=1000, dport=53) / b"payload"


@pytest.mark.parametrize(
    ("link_type", "data"),
    [
        (ETHERNET, bytes(Ether(type=0x0800) / UDP4)),
        (ETHERNET, bytes(Ether() / Dot1Q(vlan=5) / UDP4)),
        (ETHERNET, bytes(Ether() / Dot1AD(vlan=7) / Dot1Q(vlan=5) / UDP6)),
        (ETHERNET, bytes(Ether(type=0x86DD) / UDP6) + b"padding of a short frame"),
        (COOKED, bytes(CookedLinux(proto=0x0800) / UDP4)),
        (COOKED2, bytes(CookedLinuxV2(proto=0x86DD) / UDP6)),
        (BSD_LOOPBACK, b"\x02\x00\x00\x00" + bytes(UDP4)),
        (BSD_LOOPBACK, b"\x1e\x00\x00\x00" + bytes(UDP6)),
        (RAW, bytes(UDP4)),
        (RAW, bytes(UDP6)),
        (RAW_OF_LINUX, bytes(UDP6)),
        (IPV4, bytes(UDP4)),
        (IPV6, bytes(UDP6)),
    ],
)
def test_a_datagram_is_the_same_on_every_link(link_type: int, data: bytes) -> None:
    packet = decoded(data, link_type)
    assert (packet.source, packet.destination) in ((C4, S4), (C6, S6))
    assert (packet.protocol, packet.source_port, packet.destination_port, packet.fragment) == (17, 1000, 53, Fragment.NONE)
    assert packet.length == (35 if packet.source.version == 4 else 55)
    # Only fragments have an identification that counts.
    assert packet.fragment_id == 0


def test_hardware_addresses_come_from_the_link_layer() -> None:
    sent, *_ = [open_frame(frame.link_type, frame.data) for frame in frames("http_tcp.pcap")][2:]
    assert (sent.source_hardware, sent.destination_hardware) == (CLIENT_HARDWARE, SERVER_HARDWARE)
    cooked = [open_frame(frame.link_type, frame.data) for frame in frames("cooked_ping.pcap")]
    assert {opened.source_hardware for opened in cooked} == {CLIENT_HARDWARE, SERVER_HARDWARE}
    assert {opened.destination_hardware for opened in cooked} == {b""}


@pytest.mark.parametrize("link_type", [ETHERNET, COOKED, COOKED2])
def test_a_frame_without_ip_is_told_from_an_unreadable_one(link_type: int) -> None:
    arp = {ETHERNET: Ether(type=0x0806), COOKED: CookedLinux(proto=0x0806), COOKED2: CookedLinuxV2(proto=0x0806)}[link_type]
    assert open_frame(link_type, bytes(arp) + bytes(28)).version == 0
    with pytest.raises(UnreadableError):
        open_frame(link_type, bytes(arp)[:-1] if link_type != COOKED2 else b"\x08")


def test_an_unknown_link_type_is_an_error_of_its_own() -> None:
    with pytest.raises(UnknownLinkError, match=r"^frames of link type 105 can't be read; those of Ethernet, "):
        open_frame(105, bytes(100))


@pytest.mark.parametrize(
    "chain",
    [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrRouting(addresses=["2001:db8::1", "2001:db8::2"]),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt(),
        IPv6ExtHdrFragment(offset=0, m=0, id=5),
    ],
)
def test_extension_headers_of_ipv6_are_skipped(chain: Raw) -> None:
    packet = decoded(bytes(IPv6(src=CLIENT6, dst=SERVER6) / chain / TCP(sport=1000, dport=80, flags="S")))
    assert (packet.protocol, packet.source_port, packet.destination_port, packet.tcp_flags) == (6, 1000, 80, SYN)
    # A fragment header on a whole packet makes it no fragment.
    assert (packet.fragment, packet.fragment_id) == (Fragment.NONE, 0)


def test_an_authentication_header_is_skipped_by_its_own_unit_of_length() -> None:
    authentication = b"\x06\x04" + bytes(22)
    data = bytes(IPv6(src=CLIENT6, dst=SERVER6, nh=51) / Raw(authentication) / TCP(sport=1000, dport=80, flags="S"))
    packet = decoded(data)
    assert (packet.protocol, packet.destination_port, packet.tcp_flags) == (6, 80, SYN)


def test_a_header_behind_the_fragment_header_is_skipped_in_the_first_fragment_only() -> None:
    inside = IPv6ExtHdrDestOpt() / UDP(sport=1000, dport=53)
    first = IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrFragment(offset=0, m=1, id=9) / inside
    packet = decoded(bytes(first))
    assert (packet.fragment, packet.fragment_id, packet.protocol, packet.destination_port) == (Fragment.FIRST, 9, 17, 53)
    # What follows here is the middle of a payload, whatever it looks like.
    later = IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrFragment(offset=2, m=0, id=9, nh=60) / Raw(b"\xff" * 16)
    packet = decoded(bytes(later))
    assert (packet.fragment, packet.fragment_id, packet.protocol, packet.destination_port) == (Fragment.LATER, 9, 60, 0)


@pytest.mark.parametrize(
    ("packet", "protocol", "ports"),
    [
        (IP() / SCTP(sport=5, dport=6), 132, (5, 6)),
        (IP(proto=47) / Raw(b"anything"), 47, (0, 0)),
        (IPv6(nh=50) / Raw(b"anything"), 50, (0, 0)),
        (IPv6(nh=59), 59, (0, 0)),
        (IP(options=[IPOption_NOP()] * 8) / UDP(sport=7, dport=8), 17, (7, 8)),
    ],
)
def test_other_protocols_keep_their_number(packet: Raw, protocol: int, ports: tuple[int, int]) -> None:
    read = decoded(bytes(packet))
    assert (read.protocol, (read.source_port, read.destination_port)) == (protocol, ports)


def error4(kind: int, inside: bytes) -> bytes:
    return bytes(IP(src=SERVER4, dst=CLIENT4) / ICMP(type=kind) / Raw(inside))


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_every_icmp_error_quotes(kind: int) -> None:
    # Eight bytes of the transport header is all that an error must carry (RFC 792).
    for inside, ports in ((UDP(sport=1, dport=2), (1, 2)), (TCP(sport=3, dport=4), (3, 4)), (SCTP(sport=5, dport=6), (5, 6))):
        quoted = decoded(error4(kind, bytes(IP(src=CLIENT4, dst=SERVER4) / inside)[:28])).quoted
        assert quoted is not None
        assert (quoted.source, quoted.destination, (quoted.source_port, quoted.destination_port)) == (C4, S4, ports)


def test_a_quoted_ping_keeps_type_and_identifier() -> None:
    quoted = decoded(error4(11, bytes(IP(src=CLIENT4, dst=SERVER4) / ICMP(type=8, id=99)))).quoted
    assert quoted == QuotedPacket(source=C4, destination=S4, protocol=1, icmp_type=8, icmp_id=99)
    inside = IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrHopByHop() / ICMPv6EchoRequest(id=98)
    quoted = decoded(bytes(IPv6() / ICMPv6TimeExceeded() / Raw(bytes(inside)))).quoted
    assert quoted == QuotedPacket(source=C6, destination=S6, protocol=58, icmp_type=128, icmp_id=98)


def test_only_errors_quote() -> None:
    inside = bytes(IP(src=CLIENT4, dst=SERVER4) / UDP(sport=1, dport=2))
    assert decoded(error4(8, inside)).quoted is None
    assert decoded(bytes(IPv6() / ICMPv6EchoReply(data=bytes(UDP6)))).quoted is None


@pytest.mark.parametrize(
    "inside",
    [b"", b"E", bytes(20), bytes(IP() / UDP())[:22], bytes(UDP6), bytes(IP(ihl=4) / UDP())],
    ids=["nothing", "one byte", "zeros", "half of the ports", "of another family", "a header too short"],
)
def test_an_error_that_quotes_nothing_readable_is_left_to_the_engine(inside: bytes) -> None:
    assert decoded(error4(3, inside)).quoted is None


@pytest.mark.parametrize(
    ("whole", "enough"),
    [
        (IP() / TCP() / Raw(b"x" * 50), 20 + 14),
        (IP() / UDP() / Raw(b"x" * 50), 20 + 4),
        (IP() / ICMP() / Raw(b"x" * 50), 20 + 8),
        (IP() / ICMP(type=3) / IP() / UDP() / Raw(b"x" * 50), 20 + 8 + 20 + 4),
        (IPv6() / IPv6ExtHdrHopByHop() / TCP() / Raw(b"x" * 50), 40 + 8 + 14),
        (IPv6() / ICMPv6EchoRequest(data=b"x" * 50), 40 + 8),
        (IPv6() / IPv6ExtHdrFragment(offset=1, m=0) / Raw(b"x" * 50), 40 + 8),
        (IP(proto=47) / Raw(b"x" * 50), 20),
    ],
    ids=lambda value: value.summary() if isinstance(value, Raw | IP | IPv6) else str(value),
)
def test_a_packet_cut_by_the_recording_is_read_as_long_as_its_headers_are_there(whole: Raw, enough: int) -> None:
    data = bytes(whole)
    complete = decoded(data)
    assert complete.length == len(data)
    assert decoded(data[:enough]) == complete
    for size in range(1, enough):
        error = refused(data[:size])
        assert error.cut, (size, str(error))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(IP(ihl=4) / UDP()), "an IPv4 header of 16 bytes in a packet of 28"),
        (bytes(IP(len=19) / UDP()), "an IPv4 header of 20 bytes in a packet of 19"),
        (b"\x00" * 60, "no IP in it"),
        (bytes(IP(len=30) / TCP()), "10 bytes of the header of protocol 6"),
        (bytes(IP() / TCP(dataofs=4)), "a TCP header of 16 bytes in a segment of 20"),
        (bytes(IP() / TCP(dataofs=6)), "a TCP header of 24 bytes in a segment of 20"),
        (bytes(IP() / Raw(b"1234567"))[:9] + b"\x11" + bytes(IP() / Raw(b"1234567"))[10:], "7 bytes of the header of protocol 17"),
        (bytes(IPv6(nh=0) / Raw(b"\x06")), "1 bytes of an IPv6 extension header"),
        (bytes(IPv6(nh=60) / Raw(b"\x06\x01" + bytes(10))), "12 bytes of an IPv6 extension header"),
        (bytes(IPv6(nh=44) / Raw(b"\x06\x00")), "2 bytes of an IPv6 fragment header"),
    ],
)
def test_a_header_that_can_not_be_is_malformed_and_not_cut(data: bytes, message: str) -> None:
    error = refused(data)
    assert str(error) == message
    assert not error.cut


def test_a_frame_whose_type_and_version_differ_is_malformed() -> None:
    assert str(refused(bytes(Ether(type=0x86DD) / UDP4) + bytes(40), ETHERNET)) == "an IPv6 packet that says it is of version 4"


LINK_TYPES = st.sampled_from([ETHERNET, RAW, COOKED, COOKED2, BSD_LOOPBACK, IPV4, IPV6])
RECORDED = [frame for name in CAPTURES for frame in frames(name)]


def read_or_refuse(data: bytes, link_type: int) -> None:
    try:
        packet = decoded(data, link_type)
    except UnreadableError:
        return
    assert packet.source.version == packet.destination.version
    assert 0 <= packet.source_port <= 65_535
    assert 0 <= packet.protocol <= 255


@given(data=st.binary(max_size=200), link_type=LINK_TYPES)
def test_no_bytes_raise_anything_else(data: bytes, link_type: int) -> None:
    read_or_refuse(data, link_type)


@given(
    start=st.sampled_from([b"\x45\x00", b"\x60\x00\x00\x00\x00\x40\x00", b"\x60\x00\x00\x00\x00\x40\x2c", b"\x4f\x00"]),
    rest=st.binary(max_size=200),
)
def test_no_bytes_that_begin_like_ip_raise_anything_else(start: bytes, rest: bytes) -> None:
    read_or_refuse(start + rest, RAW)


@given(
    frame=st.sampled_from(RECORDED),
    size=st.integers(0, 2000),
    changes=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=5),
)
def test_no_damage_to_recorded_frames_raises_anything_else(frame: object, size: int, changes: list[tuple[int, int]]) -> None:
    data = bytearray(frame.data[:size])
    for place, value in changes:
        if place < len(data):
            data[place] = value
    read_or_refuse(bytes(data), frame.link_type)
