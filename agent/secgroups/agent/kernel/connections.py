"""Connections as conntrack keeps them, read over netlink: all of them piece by piece, or the one that a packet belongs to.

What a connection is called here is what rules are asked about: its opening packet as it crosses our hooks, behind translation of
the destination and before translation of the source.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, Address
from secgroups.agent.kernel.netlink import (
    NLM_F_DUMP,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    Message,
    attribute,
    attributes_in,
    messages,
    nested,
    open_socket,
    request,
)

# linux/netfilter/nfnetlink_conntrack.h
_SUBSYSTEM = 1 << 8
_GET = _SUBSYSTEM | 1
_TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS, _PROTOCOL_INFO, _TIMEOUT = 1, 2, 3, 4, 7
_COUNTERS_ORIGINAL, _COUNTERS_REPLY, _TIMESTAMP = 9, 10, 20
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_SOURCE = {4: 1, 6: 3}
_DESTINATION = {4: 2, 6: 4}
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
# (identifier, type, code)
_ICMP_FIELDS = {ICMP: (4, 5, 6), ICMPV6: (7, 8, 9)}
_INFO_TCP, _TCP_STATE = 1, 1
_PACKETS, _BYTES = 1, 2
_START = 1
# linux/netfilter/nf_conntrack_common.h
SEEN_REPLY, ASSURED = 1 << 1, 1 << 2

_BE16, _BE32, _BE64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What names a connection, or a packet: its two ends. For ICMP ``icmp`` is (identifier, type, code) of the opening packet."""

    protocol: int
    source: Address
    destination: Address
    source_port: int = 0
    destination_port: int = 0
    icmp: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One entry. ``tcp_state`` is the kernel's number, 0 if it is not TCP.

    ``remaining_s`` is None for one that the table does not hold yet, ``opened_ns`` (Unix nanoseconds) without
    ``nf_conntrack_timestamp``. Packets and bytes, IP headers included, are 0 without ``nf_conntrack_acct``; with it, every
    connection has a packet at least.
    """

    ends: Ends
    status: int
    tcp_state: int = 0
    remaining_s: int | None = None
    opened_ns: int | None = None
    opener_packets: int = 0
    opener_bytes: int = 0
    answerer_packets: int = 0
    answerer_bytes: int = 0


class ConnectionDump:
    """A walk through all connections of this network namespace, going on while the table changes; to be closed.

    The kernel looks for the next ones when it is asked: what is not asked for takes no memory, and asking never waits. One that
    is opened meanwhile may be missing, one that the table moves may be told twice.
    """

    def __init__(self) -> None:
        """OSError if the kernel does not allow it."""
        self.is_over = False
        self._socket = open_socket()
        self._socket.setblocking(False)
        self._socket.send(request(_GET, NLM_F_DUMP, 1, socket.AF_UNSPEC))

    def close(self) -> None:
        """End it, wherever it is."""
        self._socket.close()

    def read(self, guarded: Container[bytes]) -> list[Connection]:
        """Return those of the next hundred or so that have an end in ``guarded`` (packed addresses), until ``is_over``.

        OSError if the kernel gives up.
        """
        found = []
        for message in messages(self._socket.recv(RECEIVE_BYTES)):
            if message.kind == NLMSG_DONE:
                self.is_over = True
                break
            if message.kind == NLMSG_ERROR:
                raise OSError(message.error, os.strerror(message.error))
            connection = _connection(message, guarded)
            if connection is not None:
                found.append(connection)
        return found


class _Everybody(Container[bytes]):
    def __contains__(self, address: object) -> bool:
        return True


def find_connection(ends: Ends) -> Connection | None:
    """Return the connection that a packet with these ends belongs to, whichever way it goes. OSError if the kernel fails."""
    with open_socket() as asked:
        asked.settimeout(ANSWER_TIMEOUT_S)
        for tuple_ends in _tuples(ends):
            # The kernel finds an entry by either of its tuples. What it can't translate back is named by the other.
            asked.send(request(_GET, 0, 1, _FAMILIES[ends.source.version], _tuple(tuple_ends)))
            for message in messages(asked.recv(RECEIVE_BYTES)):
                if message.kind != NLMSG_ERROR:
                    return _connection(message, _Everybody())
                if message.error != errno.ENOENT:
                    raise OSError(message.error, os.strerror(message.error))
    return None


def _tuples(ends: Ends) -> Iterator[Ends]:
    yield ends
    yield Ends(
        protocol=ends.protocol,
        source=ends.destination,
        destination=ends.source,
        source_port=ends.destination_port,
        destination_port=ends.source_port,
        icmp=(ends.icmp[0], _ICMP_ANSWERS.get(ends.protocol, {}).get(ends.icmp[1], ends.icmp[1]), ends.icmp[2]),
    )


# As ``invmap`` in net/netfilter/nf_conntrack_proto_icmp.c and _icmpv6.c.
_ICMP_ANSWERS = {
    ICMP: {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17},
    ICMPV6: {128: 129, 129: 128, 139: 140, 140: 139},
}


def _tuple(ends: Ends) -> bytes:
    version = ends.source.version
    addresses = attribute(_SOURCE[version], ends.source.packed), attribute(_DESTINATION[version], ends.destination.packed)
    protocol = [attribute(_NUMBER, bytes([ends.protocol]))]
    if ends.protocol in _ICMP_FIELDS:
        identifier, kind, code = _ICMP_FIELDS[ends.protocol]
        protocol.append(attribute(identifier, _BE16.pack(ends.icmp[0])))
        protocol += [attribute(kind, bytes([ends.icmp[1]])), attribute(code, bytes([ends.icmp[2]]))]
    else:
        # Those without ports overlook them or, as GRE, insist that there are some.
        protocol.append(attribute(_SOURCE_PORT, _BE16.pack(ends.source_port)))
        protocol.append(attribute(_DESTINATION_PORT, _BE16.pack(ends.destination_port)))
    return nested(_TUPLE_ORIGINAL, nested(_TUPLE_IP, *addresses), nested(_TUPLE_PROTOCOL, *protocol))


def _connection(message: Message, guarded: Container[bytes]) -> Connection | None:
    told = message.attributes()
    original, reply = attributes_in(told[_TUPLE_ORIGINAL]), attributes_in(told[_TUPLE_REPLY])
    opener, answerer = _source(original), _source(reply)
    if opener not in guarded and answerer not in guarded:
        return None
    forth, back = attributes_in(original[_TUPLE_PROTOCOL]), attributes_in(reply[_TUPLE_PROTOCOL])
    protocol = forth[_NUMBER][0]
    opener_packets, opener_bytes = _counts(told.get(_COUNTERS_ORIGINAL, b""))
    answerer_packets, answerer_bytes = _counts(told.get(_COUNTERS_REPLY, b""))
    return Connection(
        ends=Ends(
            protocol=protocol,
            source=_address(opener),
            destination=_address(answerer),
            source_port=_port(forth) if protocol in PROTOCOLS_WITH_PORTS else 0,
            destination_port=_port(back) if protocol in PROTOCOLS_WITH_PORTS else 0,
            icmp=_icmp(forth, protocol) if protocol in _ICMP_FIELDS else (0, 0, 0),
        ),
        status=_number(told, _STATUS, _BE32),
        tcp_state=_tcp_state(told.get(_PROTOCOL_INFO, b"")),
        remaining_s=_number(told, _TIMEOUT, _BE32) if _TIMEOUT in told else None,
        opened_ns=_number(attributes_in(told[_TIMESTAMP]), _START, _BE64) if _TIMESTAMP in told else None,
        opener_packets=opener_packets,
        opener_bytes=opener_bytes,
        answerer_packets=answerer_packets,
        answerer_bytes=answerer_bytes,
    )


def _source(tuple_: dict[int, bytes]) -> bytes:
    addresses = attributes_in(tuple_[_TUPLE_IP])
    return addresses[_SOURCE[4]] if _SOURCE[4] in addresses else addresses[_SOURCE[6]]


def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _port(protocol: dict[int, bytes]) -> int:
    return _number(protocol, _SOURCE_PORT, _BE16)


def _icmp(protocol: dict[int, bytes], number: int) -> tuple[int, int, int]:
    identifier, kind, code = _ICMP_FIELDS[number]
    return _number(protocol, identifier, _BE16), protocol.get(kind, b"\0")[0], protocol.get(code, b"\0")[0]


def _tcp_state(info: bytes) -> int:
    held = attributes_in(attributes_in(info).get(_INFO_TCP, b""))
    return held[_TCP_STATE][0] if _TCP_STATE in held else 0


def _counts(counters: bytes) -> tuple[int, int]:
    held = attributes_in(counters)
    return _number(held, _PACKETS, _BE64), _number(held, _BYTES, _BE64)


def _number(held: dict[int, bytes], kind: int, form: struct.Struct) -> int:
    value = held.get(kind)
    return int(form.unpack(value)[0]) if value is not None else 0
