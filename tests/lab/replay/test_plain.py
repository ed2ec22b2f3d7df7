"""The short way from a frame to a record says what the long way says, and is taken by all that it is for."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import CAPTURES, CLIENT4, CLIENT6, EGRESS, FOLDER, SERVER4, SERVER6, frames, ruleset, spec
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import ARP, CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Ether, Loopback
from scapy.packet import Raw
from scapy.utils import wrpcap

from secgroups.agent.records import RECORD_BYTES, pack
from secgroups.agent.wire import UnreadableError
from secgroups.lab.replay import packing, plain, tally
from secgroups.lab.replay.capture import Capture, Frame
from secgroups.lab.replay.decode import open_frame, read_packet
from secgroups.lab.replay.placement import Placement, find_own_hardware
from secgroups.lab.replay.plain import NOT_THE_SERVERS, PlainWriter
from secgroups.lab.replay.report import write_json
from secgroups.lab.replay.run import Replay

ETHERNET, RAW, COOKED, COOKED2, BSD_LOOPBACK = 1, 101, 113, 276, 0
ADDRESSES = frozenset(map(ip_address, (SERVER4, SERVER6)))
HANDLE = 77
RECORDED = [frame for name in CAPTURES for frame in frames(name)]
PLACEMENTS = {
    addresses: Placement(addresses, find_own_hardware(((None, each.link_type, each.data) for each in RECORDED), addresses))
    for addresses in (ADDRESSES, frozenset(map(ip_address, (CLIENT4, CLIENT6))), frozenset([ip_address("192.0.2.1")]))
}


def written(link_type: int, data: bytes, addresses: frozenset[object] = ADDRESSES, *, everything: bool = False) -> bytes | None:
    """Return the record that the short way writes, nothing if the packet is not the server's, None if it does not know."""
    records = bytearray(b"x" * RECORD_BYTES * 3)
    writer = PlainWriter(PLACEMENTS[addresses], addresses, HANDLE, everything=everything)
    lane = writer.write(link_type, data, records, RECORD_BYTES)
    assert records[:RECORD_BYTES] + records[RECORD_BYTES * 2 :] == b"x" * RECORD_BYTES * 2
    if lane:
        return bytes(records[RECORD_BYTES : RECORD_BYTES * 2])
    assert records == b"x" * RECORD_BYTES * 3
    return lane


def long_way(link_type: int, data: bytes, addresses: frozenset[object] = ADDRESSES) -> bytes | None:
    """Return what the long way comes to; None if there is no packet in the frame."""
    try:
        opened = open_frame(link_type, data)
        packet = read_packet(opened)
    except UnreadableError:
        return None
    direction = PLACEMENTS[addresses].find_direction(packet, opened)
    if direction is None:
        return NOT_THE_SERVERS
    record, quote = pack(replace(packet, server="p/s", direction=direction), HANDLE)
    assert not quote or packet.quoted is not None
    return record


TO, BACK = IP(src=CLIENT4, dst=SERVER4), IP(src=SERVER4, dst=CLIENT4)
TO6, BACK6 = IPv6(src=CLIENT6, dst=SERVER6), IPv6(src=SERVER6, dst=CLIENT6)
ELSEWHERE = IP(src=CLIENT4, dst="192.0.2.9")
PAYLOAD = Raw(b"some payload, at least as long as a header")
SYN, QUESTION, PING = TCP(sport=4000, dport=80, flags="S"), UDP(sport=4000, dport=53) / PAYLOAD, ICMP(type=8, id=5) / PAYLOAD


@pytest.mark.parametrize(
    ("link_type", "frame"),
    [
        (ETHERNET, Ether() / TO / SYN),
        (ETHERNET, Ether() / BACK / TCP(sport=80, dport=4000, flags="SA", options=[("MSS", 1460)]) / PAYLOAD),
        (ETHERNET, Ether() / TO / QUESTION),
        (ETHERNET, Ether() / TO / PING),
        (ETHERNET, Ether() / BACK / ICMP(type=0, id=5) / PAYLOAD),
        (ETHERNET, Ether() / TO6 / SYN),
        (ETHERNET, Ether() / BACK6 / QUESTION),
        (ETHERNET, Ether() / TO6 / ICMPv6EchoRequest(id=9, data=b"0123456789")),
        (ETHERNET, Ether() / BACK6 / ICMPv6EchoReply(id=9, data=b"0123456789")),
        (ETHERNET, Ether() / Dot1Q(vlan=7) / TO / SYN),
        (RAW, TO / SYN),
        (RAW, TO6 / SYN),
        (COOKED, CookedLinux() / TO / SYN),
        (COOKED2, CookedLinuxV2() / TO / SYN),
        (BSD_LOOPBACK, Loopback() / TO / SYN),
        # Offloaded: as long as it says, though not all was recorded.
        (RAW, IP(src=CLIENT4, dst=SERVER4, len=40_000) / SYN),
    ],
    ids=lambda value: value if isinstance(value, int) else value.summary(),
)
def test_plain_packets_take_the_short_way_to_the_same_record(link_type: int, frame: Raw) -> None:
    record = written(link_type, bytes(frame))
    assert record
    assert record == long_way(link_type, bytes(frame))


@pytest.mark.parametrize(
    ("link_type", "data"),
    [
        (ETHERNET, bytes(Ether() / ARP())),
        (ETHERNET, bytes(Ether() / Dot1AD(vlan=7) / Dot1Q(vlan=8) / TO / SYN)),
        (RAW, bytes(IP(src=CLIENT4, dst=SERVER4, options=[IPOption_NOP()]) / SYN)),
        (RAW, bytes(IP(src=CLIENT4, dst=SERVER4, flags="MF") / SYN)),
        (RAW, bytes(IP(src=CLIENT4, dst=SERVER4, frag=1) / SYN)),
        (RAW, bytes(TO6 / IPv6ExtHdrDestOpt() / SYN)),
        (RAW, bytes(TO / TCP(dataofs=4) / PAYLOAD)),
        (RAW, bytes(TO / TCP(dataofs=15))),
        (RAW, bytes(IP(src=CLIENT4, dst=SERVER4, len=0) / SYN)),
        (RAW, bytes(IP(src=CLIENT4, dst=SERVER4, len=27) / QUESTION)),
        (RAW, bytes(TO / SYN)[:33]),
        (RAW, bytes(TO / ICMP(type=3) / TO / QUESTION)),
        (RAW, bytes(IP(src=CLIENT4, dst=SERVER4, proto=47) / PAYLOAD)),
        # For many: hardware addresses may tell.
        (RAW, bytes(IP(src=CLIENT4, dst="224.0.0.251") / QUESTION)),
        (RAW, bytes(IP(src="169.254.1.1", dst="192.0.2.9") / QUESTION)),
        (999, bytes(TO / SYN)),
        (RAW, b""),
    ],
)
def test_what_is_not_plain_or_not_whole_goes_the_long_way(link_type: int, data: bytes) -> None:
    assert written(link_type, data) is None


def test_packets_of_others_are_passed_by_unless_everything_is_asked_for() -> None:
    data = bytes(ELSEWHERE / SYN)
    assert (written(RAW, data), written(RAW, data, everything=True)) == (NOT_THE_SERVERS, None)


@given(
    frame=st.sampled_from(RECORDED),
    size=st.integers(0, 200),
    changes=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=4),
    addresses=st.sampled_from(list(PLACEMENTS)),
)
def test_whatever_the_short_way_says_of_a_damaged_frame_the_long_way_says_too(
    frame: Frame, size: int, changes: list[tuple[int, int]], addresses: frozenset[object]
) -> None:
    data = bytearray(frame.data[:size])
    for place, value in changes:
        if place < len(data):
            data[place] = value
    found = written(frame.link_type, bytes(data), addresses)
    assert found is None or found == long_way(frame.link_type, bytes(data), addresses)


def report(path: Path, *, everything: bool = False, summary: bool = False) -> str:
    rules = ruleset(spec("tcp", 80), spec("icmp"), spec("any", direction=EGRESS))
    with Capture(path) as capture:
        return "\n".join(write_json(Replay(capture, rules, everything=everything), summary=summary))


@pytest.mark.parametrize("name", CAPTURES)
def test_bounds_of_what_is_held_at_a_time_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [report(FOLDER / name, everything=everything) for everything in (False, True)]
    monkeypatch.setattr(packing, "BATCH_FRAMES", 3)
    monkeypatch.setattr(plain, "STRANGERS_MAX", 1)
    monkeypatch.setattr(tally, "PENDING_MAX", 2)
    monkeypatch.setattr(tally, "LANES_MAX", 1)
    assert [report(FOLDER / name, everything=everything) for everything in (False, True)] == expected


def test_packets_of_one_flow_count_in_one_line_whichever_way_they_took(tmp_path: Path) -> None:
    answer = TCP(sport=80, dport=4000, flags="SA")
    with_options = IP(src=SERVER4, dst=CLIENT4, options=[IPOption_NOP()])
    wrpcap(
        str(tmp_path / "c"), [TO / SYN, with_options / answer, BACK / answer, TO / PING, BACK / ICMP(type=0, id=5)], linktype=RAW
    )
    for summary in (False, True):
        text = report(tmp_path / "c", summary=summary)
        assert text.count('"flow": "TCP 198.51.100.7:4000 > 10.0.0.9:80"') == 1
        assert text.count('"flow": "ICMP 198.51.100.7 > 10.0.0.9 echo request id 5"') == 1
        assert '"flows": 2' in text
