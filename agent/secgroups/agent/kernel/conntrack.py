"""Clears our bits of all connection marks, so that epochs can be given out from the first again.

A connection is named to the kernel by the very attributes it was told by, so nothing of them is parsed. ``ctnetlink_change_mark``
changes only the bits of the mask it is given.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from secgroups.agent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    Message,
    attribute,
    messages,
    nested,
    open_socket,
    request,
)

# linux/netfilter/nfnetlink_conntrack.h
_SUBSYSTEM = 1 << 8
_CT_NEW, _CT_GET = _SUBSYSTEM | 0, _SUBSYSTEM | 1
_TUPLE_ORIGINAL, _MARK, _ID, _ZONE, _MARK_MASK = 1, 8, 12, 18, 21
_BE32 = struct.Struct(">I")

ANSWER_TIMEOUT_S = 10.0
# A dump may miss what moves while the table grows: it is looked again until nothing is found.
PASSES_MAX = 10


def clear_marks(mask: int) -> int:
    """Clear the bits of ``mask`` in the marks of all connections of this network namespace; return in how many.

    Blocks, for about a second with a million connections. OSError if the kernel refuses or connections with such bits keep coming.
    """
    cleared = 0
    with open_socket() as reader, open_socket() as writer:
        for each in (reader, writer):
            each.settimeout(ANSWER_TIMEOUT_S)
        for _ in range(PASSES_MAX):
            found = _clear_found(reader, writer, mask)
            cleared += found
            if not found:
                return cleared
    raise OSError(errno.EBUSY, f"after {PASSES_MAX} passes connections still have bits of {mask:#x} in their marks")


def _clear_found(reader: socket.socket, writer: socket.socket, mask: int) -> int:
    reader.send(request(_CT_GET, NLM_F_DUMP, 1, socket.AF_UNSPEC))
    found = 0
    while True:
        for message in messages(reader.recv(RECEIVE_BYTES)):
            if message.kind == NLMSG_DONE:
                return found
            if message.kind == NLMSG_ERROR:
                raise OSError(message.error, os.strerror(message.error))
            told = message.attributes()
            if _BE32.unpack(told.get(_MARK, bytes(4)))[0] & mask:
                _clear(writer, message, told, mask)
                found += 1


def _clear(writer: socket.socket, message: Message, told: dict[int, bytes], mask: int) -> None:
    named = nested(_TUPLE_ORIGINAL, told[_TUPLE_ORIGINAL])
    for kind in (_ID, _ZONE):
        if kind in told:
            named += attribute(kind, told[kind])
    wanted = attribute(_MARK, _BE32.pack(0)) + attribute(_MARK_MASK, _BE32.pack(mask))
    writer.send(request(_CT_NEW, NLM_F_ACK, 1, message.body[0], named + wanted))
    for answer in messages(writer.recv(RECEIVE_BYTES)):
        # ENOENT: it has ended meanwhile.
        if answer.kind == NLMSG_ERROR and answer.error not in (0, errno.ENOENT):
            raise OSError(answer.error, os.strerror(answer.error))
