"""Capture files: both formats in all their spellings, damaged ones, and what is none."""

from __future__ import annotations

import gzip
import io
import os
import struct
from pathlib import Path

import pytest
from dpkt import pcap, pcapng
from hypothesis import given
from hypothesis import strategies as st
from recorded import CAPTURES, FOLDER, frames

from secgroups.lab.replay.capture import RECORD_BYTES_MAX, Capture, CaptureError, Frame

ETHERNET, COOKED = 1, 113
SECOND_NS = 1_000_000_000


def read(path: Path, content: bytes) -> tuple[list[Frame], str]:
    path.write_bytes(content)
    with Capture(path) as capture:
        return list(capture.frames()), capture.damage


@pytest.mark.parametrize(
    ("name", "count", "link_type"),
    [
        ("dns_udp.pcap", 6, 1),
        ("ping.pcap", 12, 1),
        ("icmp_unreachable.pcap", 6, 1),
        ("cooked_ping.pcap", 12, 276),
    ],
)
def test_a_recorded_capture_has_its_frames_and_link_type(name: str, count: int, link_type: int) -> None:
    read_frames = frames(name)
    assert [frame.number for frame in read_frames] == list(range(1, count + 1))
    assert {frame.link_type for frame in read_frames} == {link_type}


@pytest.mark.parametrize("name", CAPTURES)
def test_a_recorded_capture_is_whole_and_its_time_goes_on(name: str) -> None:
    with Capture(FOLDER / name) as capture:
        first, second = list(capture.frames()), list(capture.frames())
        assert capture.damage == ""
    assert first == second
    times = [frame.time_ns for frame in first if frame.time_ns is not None]
    assert len(times) == len(first)
    assert times == sorted(times)
    assert times[-1] - times[0] < 60 * SECOND_NS


def test_the_pcapng_has_nanoseconds() -> None:
    assert any(frame.time_ns % 1000 for frame in frames("dual_stack_http.pcapng") if frame.time_ns is not None)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize(("magic", "unit_ns"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)], ids=["micro", "nano"])
def test_pcap_is_read_in_both_byte_orders_and_both_units(tmp_path: Path, order: str, magic: int, unit_ns: int) -> None:
    # The link type field carries the length of a checksum in its upper bits.
    header = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 262_144, 0x1400_0000 | ETHERNET)
    record = struct.pack(f"{order}IIII", 1_700_000_000, 999_999, 3, 3) + b"abc"
    found, damage = read(tmp_path / "c", header + record)
    assert found == [Frame(number=1, time_ns=1_700_000_000 * SECOND_NS + 999_999 * unit_ns, link_type=ETHERNET, data=b"abc")]
    assert damage == ""


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + length + body + length


def section(order: str) -> bytes:
    return block(order, pcapng.PCAPNG_BT_SHB, struct.pack(f"{order}IHHq", pcapng.BYTE_ORDER_MAGIC, 1, 0, -1))


def interface(order: str, link_type: int, *, resolution: int | None = None, offset_s: int | None = None, most: int = 0) -> bytes:
    options = b""
    if resolution is not None:
        options += struct.pack(f"{order}HHB3x", pcapng.PCAPNG_OPT_IF_TSRESOL, 1, resolution)
    if offset_s is not None:
        options += struct.pack(f"{order}HHq", pcapng.PCAPNG_OPT_IF_TSOFFSET, 8, offset_s)
    if options:
        options += struct.pack(f"{order}HH", 0, 0)
    return block(order, pcapng.PCAPNG_BT_IDB, struct.pack(f"{order}HHI", link_type, 0, most) + options)


def packet(order: str, number: int, ticks: int, data: bytes, options: bytes = b"") -> bytes:
    header = struct.pack(f"{order}IIIII", number, ticks >> 32, ticks & 0xFFFF_FFFF, len(data), len(data))
    return block(order, pcapng.PCAPNG_BT_EPB, header + data + bytes(-len(data) % 4) + options)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_each_interface_of_a_pcapng_has_its_own_link_type_and_clock(tmp_path: Path, order: str) -> None:
    content = (
        section(order)
        + interface(order, ETHERNET)
        + interface(order, COOKED, resolution=9, offset_s=100)
        + interface(order, ETHERNET, resolution=0x80 | 10)
        + block(order, 0x0BAD, b"of a kind that nobody knows")
        + packet(order, 0, 1_500_000, b"one")
        + packet(order, 1, 1_500_000, b"three")
        + packet(order, 2, 512, b"half a second")
    )
    found, damage = read(tmp_path / "c", content)
    assert [(frame.time_ns, frame.link_type, frame.data) for frame in found] == [
        (1_500_000_000, ETHERNET, b"one"),
        (100 * SECOND_NS + 1_500_000, COOKED, b"three"),
        (500_000_000, ETHERNET, b"half a second"),
    ]
    assert damage == ""


def test_a_second_section_begins_anew_in_its_own_byte_order(tmp_path: Path) -> None:
    content = section("<") + interface("<", ETHERNET) + packet("<", 0, 1, b"a")
    content += section(">") + interface(">", COOKED) + packet(">", 0, 2, b"b")
    found, damage = read(tmp_path / "c", content)
    assert [(frame.number, frame.link_type, frame.data) for frame in found] == [(1, ETHERNET, b"a"), (2, COOKED, b"b")]
    assert damage == ""


def test_old_and_simple_packet_blocks_are_read(tmp_path: Path) -> None:
    old = struct.pack("<HHIIII", 0, 0, 0, 5, 3, 3) + b"old"
    simple = struct.pack("<I", 9) + b"simple..!"
    content = section("<") + interface("<", ETHERNET, most=6)
    content += block("<", pcapng.PCAPNG_BT_PB, old) + block("<", pcapng.PCAPNG_BT_SPB, simple)
    found, _ = read(tmp_path / "c", content)
    # The simple one has no time, and of its frame only what the interface records at most.
    assert [(frame.time_ns, frame.data) for frame in found] == [(5000, b"old"), (None, b"simple")]


def test_a_comment_that_is_no_text_does_not_cost_the_packet(tmp_path: Path) -> None:
    comment = struct.pack("<HH", pcapng.PCAPNG_OPT_COMMENT, 4) + b"\xff\xfe\xfd\xfc" + struct.pack("<HH", 0, 0)
    found, damage = read(tmp_path / "c", section("<") + interface("<", ETHERNET) + packet("<", 0, 1, b"data", comment))
    assert [frame.data for frame in found] == [b"data"]
    assert damage == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a pcap nor a pcapng file"),
        (b"just some text, longer than a header would be", "neither a pcap nor a pcapng file"),
        (bytes(1000), "neither a pcap nor a pcapng file"),
        (struct.pack("<I", 0xA1B2C3D4), "neither a pcap nor a pcapng file"),
        (gzip.compress(b"whatever"), "compressed; unpack it with gunzip first"),
        (b"\x0a\x0d\x0d\x0a and then nothing that fits", "begins like a pcapng file, but its first block is none"),
    ],
    ids=["empty", "text", "zeros", "four bytes", "gzip", "no section"],
)
def test_what_is_no_capture_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=f"^{message}$"):
        Capture(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in ((".", "not a regular file"), ("pipe", "not a regular file"), ("none", "no such file or directory")):
        with pytest.raises(CaptureError, match=f"^{message}$"):
            Capture(tmp_path / name)


def test_a_pcap_cut_anywhere_gives_the_frames_before_the_cut_and_says_so_unless_between_frames(tmp_path: Path) -> None:
    content, whole = (FOLDER / "dns_udp.pcap").read_bytes(), frames("dns_udp.pcap")
    undamaged = []
    for size in range(24, len(content)):
        found, damage = read(tmp_path / "c", content[:size])
        assert found == whole[: len(found)]
        if damage:
            assert damage == f"the file ends in the middle of a packet at byte {size}; what follows is not read"
        else:
            undamaged.append(len(found))
    assert undamaged == list(range(len(whole)))


def test_a_pcapng_cut_anywhere_gives_the_frames_before_the_cut(tmp_path: Path) -> None:
    content, whole = (FOLDER / "dual_stack_http.pcapng").read_bytes(), frames("dual_stack_http.pcapng")
    counts = []
    for size in range(24, len(content), 7):
        found, _ = read(tmp_path / "c", content[:size])
        assert found == whole[: len(found)]
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[-1] >= len(whole) - 1


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        (section("<") + interface("<", ETHERNET) + packet("<", 3, 1, b"x"), "a packet of interface 3, which is not described"),
        (section("<") + packet("<", 0, 1, b"x"), "a packet of interface 0, which is not described"),
        (section("<") + struct.pack("<II", 6, 4) + bytes(50), "a block of 4 bytes"),
        (section("<") + struct.pack("<II", 6, 0) + bytes(50), "a block of 0 bytes"),
        (section("<") + struct.pack("<II", 6, 0xFFFF_FFF0) + bytes(50), "a record of 4294967272 bytes"),
        (section("<") + interface("<", ETHERNET) + block("<", 6, b"tiny"), "a packet in a block of 16 bytes"),
        (section("<") + block("<", 1, b"tiny"), "an interface that can't be read"),
    ],
)
def test_damage_ends_the_reading_and_is_told(tmp_path: Path, content: bytes, damage: str) -> None:
    found, told = read(tmp_path / "c", content)
    assert found == []
    assert told.startswith(damage)
    assert " at byte " in told


def test_a_record_that_claims_gigabytes_is_not_asked_for(tmp_path: Path) -> None:
    content = (FOLDER / "ping.pcap").read_bytes()[:24] + struct.pack("<IIII", 1, 0, RECORD_BYTES_MAX + 1, RECORD_BYTES_MAX + 1)
    found, damage = read(tmp_path / "c", content + bytes(100))
    assert found == []
    assert damage == f"a record of {RECORD_BYTES_MAX + 1} bytes at byte 40; what follows is not read"


@pytest.mark.parametrize("size", [1, 262_103, 262_104, 262_105, 600_000])
def test_frames_of_all_sizes_are_read_whole_from_a_file_that_is_read_in_pieces(tmp_path: Path, size: int) -> None:
    data = [bytes([number]) * (size + number) for number in range(5)]
    content = (FOLDER / "ping.pcap").read_bytes()[:24]
    content += b"".join(struct.pack("<IIII", number, 0, len(each), len(each)) + each for number, each in enumerate(data))
    found, damage = read(tmp_path / "c", content)
    assert [(frame.time_ns, frame.data) for frame in found] == [(number * SECOND_NS, each) for number, each in enumerate(data)]
    assert damage == ""


def written_by_dpkt() -> tuple[bytes, bytes]:
    old, new = io.BytesIO(), io.BytesIO()
    pcap.Writer(old).writepkt(b"frame", ts=1.5)
    pcapng.Writer(new).writepkt(b"frame", ts=1.5)
    return old.getvalue(), new.getvalue()


@pytest.mark.parametrize("content", written_by_dpkt(), ids=["pcap", "pcapng"])
def test_what_dpkt_writes_is_read(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path / "c", content) == ([Frame(number=1, time_ns=1_500_000_000, link_type=ETHERNET, data=b"frame")], "")


@given(
    start=st.sampled_from([b"", section("<"), section(">") + interface(">", 1), (FOLDER / "ping.pcap").read_bytes()[:24]]),
    rest=st.binary(max_size=300),
)
def test_no_file_makes_more_than_an_error(tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    path.write_bytes(start + rest)
    try:
        with Capture(path) as capture:
            found = list(capture.frames())
    except CaptureError:
        return
    assert sum(len(frame.data) for frame in found) <= len(start) + len(rest)
