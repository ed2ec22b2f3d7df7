"""The packed form of packets and verdicts: what ``Firewall.decide_many`` reads and writes, and ``DecideStream`` carries.

Numbers are unsigned and little-endian, addresses are in network order, an IPv4 address a.b.c.d is written ::ffff:a.b.c.d.

Record, 64 bytes, one packet::

     0  source[16]
    16  destination[16]
    32  server u32            handle of the server (Firewall.server_handle)
    36  source_port u16       0 where the protocol has none or, in a later fragment, where it is not known
    38  destination_port u16  the same
    40  protocol u8           IANA number
    41  ip_version u8         4 or 6, of both addresses
    42  direction u8          1 ingress (towards the server), 2 egress (from it)
    43  tcp_flags u8          the low byte of the TCP flags
    44  icmp_type u8
    45  icmp_code u8
    46  icmp_id u16           identifier of an ICMP request or reply
    48  fragment u8           0 the whole packet, 1 first fragment, 2 any later one
    49  reserved[3]           zero
    52  fragment_id u32       IP identification; counts for fragments only
    56  length u32            of the whole IP packet, in bytes
    60  quote u32             0 none, else the number, from 1, of an entry in the quotes of the same call

Quote, 48 bytes, the header that an ICMP error carries of the packet it is about, as that packet was sent::

     0  source[16]
    16  destination[16]
    32  source_port u16
    34  destination_port u16
    36  protocol u8
    37  ip_version u8         4 or 6, of both addresses
    38  icmp_type u8
    39  reserved u8           zero
    40  icmp_id u16
    42  reserved[6]           zero

Verdict, 8 bytes::

     0  action u8             1 allow, 2 deny
     1  reason u8             number of secgroups.v1.Reason
     2  flags u8              bit 0: the packet opened a flow; the others are zero
     3  step u8               row of the verdict table that decided, 1 to 13
     4  rule u32              handle of the rule that decided (Firewall.rule_id), 0 if none did

What is no packet at all:

- A record is malformed if its ip_version is neither 4 nor 6, or 4 with an address that is not written ::ffff:a.b.c.d; if its
  direction or fragment has no meaning; or if a reserved byte is not zero. It is denied as ``INVALID_PACKET`` in row 3 (so rows
  1 and 2 come first) and leaves nothing behind: no flow, and no first fragment.
- A record of version 6 with an IPv4-mapped address is a packet of IPv6 with such an address: ``INVALID_PACKET`` as well.
- A quote number beyond the quotes counts as no quote.
- A malformed quote, by the same rules, is a quote about no flow.
- Bits of a field that a record has no room for are cut off, unless they make the packet impossible in row 3: it then stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import TYPE_CHECKING

from secgroups.agent.flow import (
    ICMP,
    ICMPV6,
    PROTOCOLS_WITH_PORTS,
    Address,
    Direction,
    Fragment,
    Packet,
    QuotedPacket,
    Reason,
    Verdict,
)
from secgroups.agent.screening import fits_header

if TYPE_CHECKING:
    import numpy as np
    from _typeshed import ReadableBuffer, WriteableBuffer

RECORD = Struct("<16s16sIHHBBBBBBHB3sIII")
QUOTE = Struct("<16s16sHHBBBBH6s")
VERDICT = Struct("<BBBBI")
RECORD_BYTES, QUOTE_BYTES, VERDICT_BYTES = RECORD.size, QUOTE.size, VERDICT.size
TIME_BYTES = 8
OPENED = 0x01

_MAPPED = bytes(10) + b"\xff\xff"
_PORT_MAX, _BYTE_MAX, _WORD_MAX = 0xFFFF, 0xFF, 0xFFFF_FFFF
_NO_PROTOCOL = -1
_DIRECTIONS = {int(direction): direction for direction in Direction}
_FRAGMENTS = {int(fragment): fragment for fragment in Fragment}
# An ICMP error that quotes nothing is as impossible as a type or code beyond a byte, and can be written.
_ICMP_ERROR_OF = {ICMP: 3, ICMPV6: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedVerdict:
    """A verdict entry as it was read: ``verdict``, the row that decided, and the handle of the rule."""

    verdict: Verdict
    step: int
    rule_handle: int


def pack(packet: Packet, server_handle: int, quote_number: int = 1) -> tuple[bytes, bytes]:
    """Return the record of ``packet`` and its quote entry, empty if it quotes nothing.

    The record names that entry by ``quote_number``. Raises nothing for any packet: an impossible one has a record that is as
    impossible.
    """
    quote = b"" if packet.quoted is None else _pack_quote(packet.quoted)
    if not fits_header(packet):
        return RECORD.pack(bytes(16), bytes(16), server_handle, *(0,) * 10, bytes(3), 0, 0, 0), b""
    source_port, destination_port = packet.source_port, packet.destination_port
    icmp_type, icmp_code = packet.icmp_type, packet.icmp_code
    if packet.fragment is not Fragment.LATER:
        if packet.protocol in PROTOCOLS_WITH_PORTS:
            # Port 0 is as impossible as 70,000.
            source_port, destination_port = (port if 0 <= port <= _PORT_MAX else 0 for port in (source_port, destination_port))
        elif packet.protocol in _ICMP_ERROR_OF and not (0 <= icmp_type <= _BYTE_MAX and 0 <= icmp_code <= _BYTE_MAX):
            icmp_type, icmp_code, quote = _ICMP_ERROR_OF[packet.protocol], 0, b""
    record = RECORD.pack(
        _packed(packet.source),
        _packed(packet.destination),
        server_handle,
        source_port & _PORT_MAX,
        destination_port & _PORT_MAX,
        packet.protocol,
        packet.source.version,
        packet.direction,
        packet.tcp_flags & _BYTE_MAX,
        icmp_type & _BYTE_MAX,
        icmp_code & _BYTE_MAX,
        packet.icmp_id & _PORT_MAX,
        packet.fragment,
        bytes(3),
        packet.fragment_id & _WORD_MAX,
        min(max(packet.length, 0), _WORD_MAX),
        quote_number if quote else 0,
    )
    return record, quote


def pack_many(packets: Iterable[Packet], server_handle: Callable[[str], int]) -> tuple[bytes, bytes]:
    """Return the records of ``packets`` and the quotes that they name, ready for ``Firewall.decide_many``."""
    records, quotes = bytearray(), bytearray()
    for packet in packets:
        record, quote = pack(packet, server_handle(packet.server), len(quotes) // QUOTE_BYTES + 1)
        records += record
        quotes += quote
    return bytes(records), bytes(quotes)


def unpack(record: ReadableBuffer, quotes: ReadableBuffer, server_of: Callable[[int], str]) -> Packet:
    """Return the packet of a 64-byte ``record``, whose server is what ``server_of`` says of its handle.

    A malformed record gives a packet whose addresses are of different families. ``struct.error`` if it is not 64 bytes.
    """
    (
        source,
        destination,
        server,
        source_port,
        destination_port,
        protocol,
        ip_version,
        direction,
        tcp_flags,
        icmp_type,
        icmp_code,
        icmp_id,
        fragment,
        reserved,
        fragment_id,
        length,
        quote,
    ) = RECORD.unpack(record)
    ends = _find_ends(source, destination, ip_version)
    if ends is None or direction not in _DIRECTIONS or fragment not in _FRAGMENTS or any(reserved):
        return _malformed(server_of(server))
    return Packet(
        server=server_of(server),
        direction=_DIRECTIONS[direction],
        source=ends[0],
        destination=ends[1],
        protocol=protocol,
        source_port=source_port,
        destination_port=destination_port,
        tcp_flags=tcp_flags,
        icmp_type=icmp_type,
        icmp_code=icmp_code,
        icmp_id=icmp_id,
        fragment=_FRAGMENTS[fragment],
        fragment_id=fragment_id,
        quoted=_find_quote(quotes, quote),
        length=length,
    )


def pack_verdict(verdict: Verdict, step: int, rule_handle: int) -> bytes:
    """Return the 8-byte entry of ``verdict``."""
    return VERDICT.pack(verdict.action, verdict.reason, OPENED if verdict.opened else 0, step, rule_handle)


def unpack_verdict(entry: ReadableBuffer, rule_id: Callable[[int], str]) -> PackedVerdict:
    """Return what an 8-byte ``entry`` says; ``rule_id`` tells the id of a handle. ValueError if it is no verdict."""
    action, reason, flags, step, rule_handle = VERDICT.unpack(entry)
    verdict = Verdict(reason=Reason(reason), rule_id=rule_id(rule_handle) if rule_handle else "", opened=bool(flags & OPENED))
    if verdict.action != action:
        raise ValueError(f"action {action} does not go with reason {verdict.reason.name}")
    return PackedVerdict(verdict=verdict, step=step, rule_handle=rule_handle)


def check_buffers(records: ReadableBuffer, verdicts: WriteableBuffer, quotes: ReadableBuffer) -> int:
    """Return how many records there are. ValueError, which names the sizes, if the buffers do not fit them or each other."""
    sizes = {}
    for name, buffer in (("records", records), ("quotes", quotes), ("verdicts", verdicts)):
        view = memoryview(buffer)
        if not view.c_contiguous:
            raise ValueError(f"{name} are not C-contiguous")
        if name == "verdicts" and view.readonly:
            raise ValueError("verdicts are read-only")
        sizes[name] = view.nbytes
    for name, size in (("records", RECORD_BYTES), ("quotes", QUOTE_BYTES)):
        if sizes[name] % size:
            raise ValueError(f"{name} have {sizes[name]} bytes, not a multiple of {size}")
    count = sizes["records"] // RECORD_BYTES
    if sizes["verdicts"] != count * VERDICT_BYTES:
        raise ValueError(f"verdicts have {sizes['verdicts']} bytes, {count} records need {count * VERDICT_BYTES}")
    return count


def check_times(times: ReadableBuffer, now_ns: int, count: int) -> memoryview:
    """Return the times of ``count`` records. ValueError if they are not as many, begin before ``now_ns`` or go back."""
    view = memoryview(times)
    if not view.c_contiguous:
        raise ValueError("times are not C-contiguous")
    if view.nbytes != count * TIME_BYTES:
        raise ValueError(f"times have {view.nbytes} bytes, {count} records need {count * TIME_BYTES}")
    moments = memoryview(view.tobytes()).cast("Q")
    last_ns = now_ns
    for at, moment_ns in enumerate(moments):
        if moment_ns < last_ns:
            raise ValueError(f"the time of record {at}, {moment_ns}, is before {last_ns}")
        last_ns = moment_ns
    return moments


def record_dtype() -> np.dtype[np.void]:
    """Return the NumPy type of a record. ImportError, which says so, if NumPy is not installed."""
    return _dtype(
        "source:16u1 destination:16u1 server:<u4 source_port:<u2 destination_port:<u2 protocol:u1 ip_version:u1 direction:u1 "
        "tcp_flags:u1 icmp_type:u1 icmp_code:u1 icmp_id:<u2 fragment:u1 reserved:3u1 fragment_id:<u4 length:<u4 quote:<u4"
    )


def quote_dtype() -> np.dtype[np.void]:
    """Return the NumPy type of a quote. ImportError, which says so, if NumPy is not installed."""
    return _dtype(
        "source:16u1 destination:16u1 source_port:<u2 destination_port:<u2 protocol:u1 ip_version:u1 icmp_type:u1 reserved:u1 "
        "icmp_id:<u2 reserved_end:6u1"
    )


def verdict_dtype() -> np.dtype[np.void]:
    """Return the NumPy type of a verdict. ImportError, which says so, if NumPy is not installed."""
    return _dtype("action:u1 reason:u1 flags:u1 step:u1 rule:<u4")


def _dtype(fields: str) -> np.dtype[np.void]:
    try:
        import numpy as np
    except ImportError:
        raise ImportError("NumPy is not installed, and the agent does not need it: install numpy to use its types") from None
    return np.dtype([(name, kind) for name, _, kind in (field.partition(":") for field in fields.split())])


def _packed(address: Address) -> bytes:
    return _MAPPED + address.packed if address.version == 4 else address.packed


def _pack_quote(quoted: QuotedPacket) -> bytes:
    has_ports, is_icmp = quoted.protocol in PROTOCOLS_WITH_PORTS, quoted.protocol in _ICMP_ERROR_OF
    ports = (quoted.source_port, quoted.destination_port)
    # What is cut off could make it the header of another packet.
    if (
        not fits_header(quoted)
        or (has_ports and not all(0 <= port <= _PORT_MAX for port in ports))
        or (is_icmp and not 0 <= quoted.icmp_type <= _BYTE_MAX)
    ):
        return bytes(QUOTE_BYTES)
    return QUOTE.pack(
        _packed(quoted.source),
        _packed(quoted.destination),
        quoted.source_port & _PORT_MAX,
        quoted.destination_port & _PORT_MAX,
        quoted.protocol,
        quoted.source.version,
        quoted.icmp_type & _BYTE_MAX,
        0,
        quoted.icmp_id & _PORT_MAX,
        bytes(6),
    )


def _find_quote(quotes: ReadableBuffer, number: int) -> QuotedPacket | None:
    """Return quote ``number`` of ``quotes``, None if there is no such entry."""
    if not 0 < number <= memoryview(quotes).nbytes // QUOTE_BYTES:
        return None
    fields = QUOTE.unpack_from(quotes, (number - 1) * QUOTE_BYTES)
    source, destination, source_port, destination_port, protocol, ip_version, icmp_type, reserved, icmp_id, reserved_end = fields
    ends = _find_ends(source, destination, ip_version)
    is_malformed = ends is None or reserved or any(reserved_end)
    quoted = QuotedPacket(
        source=IPv6Address(source) if ends is None else ends[0],
        destination=IPv6Address(destination) if ends is None else ends[1],
        protocol=protocol,
        source_port=source_port,
        destination_port=destination_port,
        icmp_type=icmp_type,
        icmp_id=icmp_id,
    )
    # No flow has such a protocol.
    return replace(quoted, protocol=_NO_PROTOCOL) if is_malformed else quoted


def _find_ends(source: bytes, destination: bytes, ip_version: int) -> tuple[Address, Address] | None:
    """Return both addresses, None if there are none in what stands for them."""
    if ip_version == 6:
        return IPv6Address(source), IPv6Address(destination)
    if ip_version != 4 or not (source.startswith(_MAPPED) and destination.startswith(_MAPPED)):
        return None
    return IPv4Address(source[12:]), IPv4Address(destination[12:])


def _malformed(server: str) -> Packet:
    """Return a packet that is as impossible as a malformed record, and leaves as little behind."""
    return Packet(
        server=server,
        direction=Direction.INGRESS,
        source=IPv4Address(0),
        destination=IPv6Address(0),
        protocol=0,
    )
