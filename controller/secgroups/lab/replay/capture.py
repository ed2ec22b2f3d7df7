"""Frames of a capture file, pcap or pcapng, told apart by what the file begins with.

The headers and blocks are dpkt's, the reading is not: its pcapng reader takes the link type and the clock of the first interface
for all and reads on over the beginning of another section; its pcap reader does not tell a file that ends too early from a whole
one.

A file that is damaged or ends too early is read up to there; ``Capture.damage`` says so.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import dpkt
from dpkt import pcap, pcapng

# The largest record that Wireshark writes (WTAP_MAX_PACKET_SIZE_USBPCAP). More is damage, not a reason to ask for memory.
RECORD_BYTES_MAX = 128 * 1024 * 1024

_NS = 1_000_000_000
_GZIP = b"\x1f\x8b"
_SECTION_HEADER = struct.pack(">I", pcapng.PCAPNG_BT_SHB)
_BYTE_ORDERS = {struct.pack(">I", pcapng.BYTE_ORDER_MAGIC): ">", struct.pack("<I", pcapng.BYTE_ORDER_MAGIC): "<"}
_BLOCK_BYTES_MIN = 12
# Every block ends with its length, as it begins.
_LENGTH_BYTES = 4
_CUT = "the file ends in the middle of a packet"
_PACKET_BLOCKS = {
    (pcapng.PCAPNG_BT_EPB, "<"): pcapng.EnhancedPacketBlockLE,
    (pcapng.PCAPNG_BT_EPB, ">"): pcapng.EnhancedPacketBlock,
    (pcapng.PCAPNG_BT_PB, "<"): pcapng.PacketBlockLE,
    (pcapng.PCAPNG_BT_PB, ">"): pcapng.PacketBlock,
}


class CaptureError(Exception):
    """The file can't be replayed; the message says why, without the file's name."""


class _DamageError(Exception):
    """The file can't be read from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One recorded frame, as much of it as was recorded.

    ``number`` counts from 1. ``time_ns`` is nanoseconds since 1970, None if the file does not say. ``link_type`` is a LINKTYPE_
    number of tcpdump.org.
    """

    number: int
    time_ns: int | None
    link_type: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interface:
    link_type: int
    ticks_per_s: int
    offset_s: int
    frame_bytes_max: int


class Capture:
    """A capture file, open for reading; a context manager. Raises ``CaptureError`` if it is none."""

    def __init__(self, path: Path) -> None:
        self.damage = ""
        try:
            # Opening a pipe would wait for a writer.
            if not stat.S_ISREG(path.stat().st_mode):
                raise CaptureError("not a regular file")
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise CaptureError((error.strerror or str(error)).lower()) from None
        try:
            self._is_pcapng = _is_pcapng(self._file.read(pcap.FileHdr.__hdr_len__))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def frames(self) -> Iterator[Frame]:
        """Yield the frames from the first on, each time it is called. Sets ``damage`` when it stops before the end of the file."""
        self._file.seek(0)
        self.damage = ""
        try:
            found = _pcapng_frames(_Reader(self._file)) if self._is_pcapng else _pcap_frames(_Reader(self._file))
            for number, (time_ns, link_type, data) in enumerate(found, start=1):
                yield Frame(number=number, time_ns=time_ns, link_type=link_type, data=data)
        except _DamageError as error:
            self.damage = f"{error} at byte {self._file.tell()}; what follows is not read"


def _is_pcapng(start: bytes) -> bool:
    if start.startswith(_SECTION_HEADER):
        if start[8:12] not in _BYTE_ORDERS:
            raise CaptureError("begins like a pcapng file, but its first block is none")
        return True
    if start.startswith(_GZIP):
        raise CaptureError("compressed; unpack it with gunzip first")
    if len(start) < pcap.FileHdr.__hdr_len__ or struct.unpack(">I", start[:4])[0] not in pcap.MAGIC_TO_PKT_HDR:
        raise CaptureError("neither a pcap nor a pcapng file")
    return False


class _Reader:
    """A file whose reads answer all that was asked for or raise ``_DamageError``."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        data = self.read_or_end(size)
        if len(data) < size:
            raise _DamageError(_CUT)
        return data

    def read_or_end(self, size: int) -> bytes:
        """Return nothing where the file may end."""
        if size > RECORD_BYTES_MAX:
            raise _DamageError(f"a record of {size} bytes")
        data = self._file.read(size)
        if 0 < len(data) < size:
            raise _DamageError(_CUT)
        return data


def _pcap_frames(file: _Reader) -> Iterator[tuple[int | None, int, bytes]]:
    start = file.read(pcap.FileHdr.__hdr_len__)
    magic = struct.unpack(">I", start[:4])[0]
    record_header = pcap.MAGIC_TO_PKT_HDR[magic]
    little = record_header in (pcap.LEPktHdr, pcap.LEPktModHdr)
    fraction_ns = 1 if magic in (pcap.TCPDUMP_MAGIC_NANO, pcap.PMUDPCT_MAGIC_NANO) else 1000
    # The upper half of the field is about checksums at the end of frames.
    link_type = (pcap.LEFileHdr if little else pcap.FileHdr)(start).linktype & 0xFFFF
    while header := file.read_or_end(record_header.__hdr_len__):
        record = record_header(header)
        yield record.tv_sec * _NS + record.tv_usec * fraction_ns, link_type, file.read(record.caplen)


def _pcapng_frames(file: _Reader) -> Iterator[tuple[int | None, int, bytes]]:
    order = "<"
    interfaces: list[_Interface] = []
    while header := file.read_or_end(8):
        if header[:4] == _SECTION_HEADER:
            # Its byte order is told by what follows its length.
            header += file.read(4)
            order = _byte_order(header)
            interfaces = []
        kind, length = struct.unpack(f"{order}II", header[:8])
        if length < _BLOCK_BYTES_MIN or length % 4:
            raise _DamageError(f"a block of {length} bytes")
        block = header + file.read(length - len(header))
        if kind == pcapng.PCAPNG_BT_IDB:
            interfaces.append(_read_interface(block, order))
        elif kind in (pcapng.PCAPNG_BT_EPB, pcapng.PCAPNG_BT_PB):
            yield _read_packet(_PACKET_BLOCKS[kind, order], block, interfaces)
        elif kind == pcapng.PCAPNG_BT_SPB:
            yield _read_simple_packet(block, order, interfaces)


def _byte_order(header: bytes) -> str:
    order = _BYTE_ORDERS.get(header[8:12])
    if order is None:
        raise _DamageError("a section without a byte order")
    return order


def _interface(interfaces: list[_Interface], number: int) -> _Interface:
    if number >= len(interfaces):
        raise _DamageError(f"a packet of interface {number}, which is not described")
    return interfaces[number]


def _read_packet(kind: Any, block: bytes, interfaces: list[_Interface]) -> tuple[int | None, int, bytes]:
    packet = kind()
    if len(block) < kind.__hdr_len__:
        raise _DamageError(f"a packet in a block of {len(block)} bytes")
    # Without its options: a comment in a strange encoding must not cost the packet.
    packet.unpack_hdr(block)
    interface = _interface(interfaces, packet.iface_id)
    ticks = packet.ts_high << 32 | packet.ts_low
    start = kind.__hdr_len__ - _LENGTH_BYTES
    data = block[start:-_LENGTH_BYTES][: packet.caplen]
    return interface.offset_s * _NS + ticks * _NS // interface.ticks_per_s, interface.link_type, data


def _read_simple_packet(block: bytes, order: str, interfaces: list[_Interface]) -> tuple[int | None, int, bytes]:
    interface = _interface(interfaces, 0)
    body = block[8:-_LENGTH_BYTES]
    if len(body) < _LENGTH_BYTES:
        raise _DamageError(f"a packet in a block of {len(block)} bytes")
    # It has no time of its own, only the frame's length before the data.
    size = min(struct.unpack_from(f"{order}I", body)[0], interface.frame_bytes_max)
    return None, interface.link_type, body[_LENGTH_BYTES:][:size]


def _read_interface(block: bytes, order: str) -> _Interface:
    kind = pcapng.InterfaceDescriptionBlockLE if order == "<" else pcapng.InterfaceDescriptionBlock
    try:
        description = kind(block)
    except (dpkt.Error, struct.error, ValueError) as error:
        raise _DamageError(f"an interface that can't be read ({error})") from None
    ticks_per_s, offset_s = 1_000_000, 0
    for option in description.opts:
        if option.code == pcapng.PCAPNG_OPT_IF_TSRESOL and len(option.data) == 1:
            power = option.data[0] & 0x7F
            ticks_per_s = 2**power if option.data[0] & 0x80 else 10**power
        elif option.code == pcapng.PCAPNG_OPT_IF_TSOFFSET and len(option.data) == 8:
            offset_s = struct.unpack(f"{order}q", option.data)[0]
    return _Interface(
        link_type=description.linktype,
        ticks_per_s=ticks_per_s,
        offset_s=offset_s,
        # No limit is written as 0.
        frame_bytes_max=description.snaplen or RECORD_BYTES_MAX,
    )
