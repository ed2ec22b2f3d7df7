"""The few netlink messages that are read and written here without nft: headers and attributes (linux/netlink.h, nfnetlink.h)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

NETLINK_NETFILTER = 12
RECEIVE_BYTES = 1 << 18

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300

_HEADER = struct.Struct("=IHHII")
_NFGENMSG = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_NESTED = 0x8000
# Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
_TYPE_MASK = 0x3FFF


@dataclass(frozen=True, slots=True)
class Message:
    """One message; ``body`` is what follows the netlink header."""

    kind: int
    body: bytes

    @property
    def error(self) -> int:
        """The errno of an ``NLMSG_ERROR`` message, 0 if it is an acknowledgement."""
        return -int(_ERROR.unpack_from(self.body)[0])

    def attributes(self) -> dict[int, bytes]:
        """Return the attributes behind the nfgenmsg header, nested ones as bytes."""
        return attributes_in(self.body, _NFGENMSG.size)


def attributes_in(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Return the attributes that a nested one holds, or a message from ``start`` on."""
    found = {}
    # A dump has a million of them: what is looked up here is looked up once.
    unpack, header_bytes = _ATTRIBUTE.unpack_from, _ATTRIBUTE.size
    at, end = start, len(data) - header_bytes
    while at <= end:
        length, kind = unpack(data, at)
        if length < header_bytes:
            break
        found[kind & _TYPE_MASK] = data[at + header_bytes : at + length]
        at += (length + 3) & ~3
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(attributes))


def request(kind: int, flags: int, sequence: int, family: int, attributes: bytes = b"", *, resource: int = 0) -> bytes:
    """Return a request to a netfilter subsystem; ``resource`` is what some of them number, such as a log group."""
    body = _NFGENMSG.pack(family, 0, socket.htons(resource)) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + body


def messages(received: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram."""
    at = 0
    while at + _HEADER.size <= len(received):
        length, kind, *_ = _HEADER.unpack_from(received, at)
        if length < _HEADER.size:
            return
        yield Message(kind, received[at + _HEADER.size : at + length])
        at += (length + 3) & ~3


def open_socket(groups: int = 0) -> socket.socket:
    """Return a netfilter socket that hears the multicast ``groups`` (a bit mask). OSError if that is not allowed."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        made.bind((0, groups))
    except OSError:
        made.close()
        raise
    return made
