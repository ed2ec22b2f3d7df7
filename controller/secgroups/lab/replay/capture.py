"""Frames of a capture file, pcap or pcapng, told apart by what the file begins with.

What files and interfaces begin with is read by dpkt, the packets are not: its pcapng reader takes the link type and the clock of
the first interface for all and reads on over the beginning of another section; its pcap reader does not tell a file that ends too
early from a whole one; and an object for each header takes ten times as long as the rest of the reading.

A file that is damaged or ends too early is read up to there; ``Capture.damage`` says so.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

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
# Interface, both halves of the time, bytes recorded.
_PACKET_FIELDS = {pcapng.PCAPNG_BT_EPB: "8xIIII", pcapng.PCAPNG_BT_PB: "8xH2xIII"}
_PACKET_BLOCKS = {(kind, order): struct.Struct(order + fields) for kind, fields in _PACKET_FIELDS.items() for order in "<>"}
# Type, length, what _PACKET_FIELDS read, the length of the packet on the wire.
_PACKET_START_BYTES = 28

# So much of a pcap file is read at a time.
_CHUNK_BYTES = 1 << 18

# Nanoseconds since 1970 or None, link type, what was recorded: a Frame without its number.
RawFrame = tuple[int | None, int, bytes]


class CaptureError(Exception):
    """The file can't be replayed; the message says why, without the file's name."""


class _DamageError(Exception):
    """The file can't be read on. ``at`` is where that shows, None: where the reading stands."""

    def __init__(self, message: str, at: int | None = None) -> None:
        super().__init__(message)
        self.at = at


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
            self._file: BinaryIO = path.open("rb", buffering=_CHUNK_BYTES)
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
        for number, (time_ns, link_type, data) in enumerate(self.read(), start=1):
            yield Frame(number=number, time_ns=time_ns, link_type=link_type, data=data)

    def read(self) -> Iterator[RawFrame]:
        """Do as ``frames`` does, in the form that costs the least. Only one reading at a time."""
        self._file.seek(0)
        self.damage = ""
        try:
            yield from _pcapng_frames(_Reader(self._file)) if self._is_pcapng else _pcap_frames(_Reader(self._file))
        except _DamageError as error:
            at = self._file.tell() if error.at is None else error.at
            self.damage = f"{error} at byte {at}; what follows is not read"


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

    @property
    def position(self) -> int:
        """Where the next byte to read is."""
        return self._file.tell()

    def read_some(self, size: int) -> bytes:
        """Return up to ``size`` bytes, none at the end of the file."""
        return self._file.read(size)

    def read_or_end(self, size: int) -> bytes:
        """Return nothing where the file may end."""
        _check_size(size)
        data = self._file.read(size)
        if 0 < len(data) < size:
            raise _DamageError(_CUT)
        return data


def _pcap_frames(file: _Reader) -> Iterator[RawFrame]:
    start = file.read(pcap.FileHdr.__hdr_len__)
    magic = struct.unpack(">I", start[:4])[0]
    kind = pcap.MAGIC_TO_PKT_HDR[magic]
    little = kind in (pcap.LEPktHdr, pcap.LEPktModHdr)
    fraction_ns = 1 if magic in (pcap.TCPDUMP_MAGIC_NANO, pcap.PMUDPCT_MAGIC_NANO) else 1000
    # The upper half of the field is about checksums at the end of frames.
    link_type = (pcap.LEFileHdr if little else pcap.FileHdr)(start).linktype & 0xFFFF
    unpack_from, header_bytes = struct.Struct("<III" if little else ">III").unpack_from, kind.__hdr_len__
    held, at = b"", 0
    while True:
        end, wanted = len(held), header_bytes
        while at + header_bytes <= end:
            seconds, fraction, size = unpack_from(held, at)
            begin = at + header_bytes
            if begin + size > end:
                _check_size(size, file.position - end + begin)
                wanted += size
                break
            at = begin + size
            yield seconds * _NS + fraction * fraction_ns, link_type, held[begin:at]
        held, at = held[at:], 0
        more = file.read_some(max(_CHUNK_BYTES, wanted - len(held)))
        if not more:
            if held:
                raise _DamageError(_CUT)
            return
        held += more


def _check_size(size: int, at: int | None = None) -> None:
    if size > RECORD_BYTES_MAX:
        raise _DamageError(f"a record of {size} bytes", at)


def _pcapng_frames(file: _Reader) -> Iterator[RawFrame]:
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


def _read_packet(fields: struct.Struct, block: bytes, interfaces: list[_Interface]) -> RawFrame:
    end = len(block) - _LENGTH_BYTES
    if end < _PACKET_START_BYTES:
        raise _DamageError(f"a packet in a block of {len(block)} bytes")
    # Options are left alone: a comment in a strange encoding must not cost the packet.
    number, ticks_high, ticks_low, size = fields.unpack_from(block)
    interface = _interface(interfaces, number)
    time_ns = interface.offset_s * _NS + (ticks_high << 32 | ticks_low) * _NS // interface.ticks_per_s
    return time_ns, interface.link_type, block[_PACKET_START_BYTES : min(end, _PACKET_START_BYTES + size)]


def _read_simple_packet(block: bytes, order: str, interfaces: list[_Interface]) -> RawFrame:
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
