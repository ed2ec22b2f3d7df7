"""Packets that the kernel tells of while somebody watches (nflog): what our log statements send, read from a socket.

The kernel never waits for a reader: what finds the socket full is lost. Messages are numbered, so it is known how many were.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

from secgroups.agent.errors import EnforcementError
from secgroups.agent.flow import Direction, Packet, Reason
from secgroups.agent.kernel.denials import REASONS
from secgroups.agent.kernel.log_prefix import Way, log_prefix
from secgroups.agent.kernel.netlink import (
    NLM_F_ACK,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    Message,
    attribute,
    messages,
    open_socket,
    request,
)
from secgroups.agent.wire import UnreadableError, read_damaged_packet

# linux/netfilter/nfnetlink_log.h
_SUBSYSTEM = 4 << 8
_PACKET, _CONFIG = _SUBSYSTEM | 0, _SUBSYSTEM | 1
_IN_INTERFACE, _OUT_INTERFACE, _PAYLOAD, _PREFIX, _SEQUENCE = 4, 5, 9, 10, 12
_COMMAND, _MODE, _BUFFER_SIZE, _TIMEOUT, _THRESHOLD, _FLAGS = 1, 2, 3, 4, 5, 6
_BIND = b"\x01"
_COPY_PACKET = 2
_WITH_SEQUENCE = 0x1
# linux/netlink.h, asm-generic/socket.h; Python has no names for them.
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_SO_RCVBUFFORCE = 33

# Headers, IPv6 extensions, and as much of an ICMP error as shows what it is about.
_COPIED_BYTES = 256
# The kernel sends when it has gathered so many, or when the first has waited so long.
MESSAGES_MAX = 64
_WAIT_HUNDREDTHS_S = 5
_MESSAGE_BYTES_MAX = 1 << 16
# Room for some tens of thousands while the agent does something else.
SOCKET_BYTES = 8 << 20
_ANSWER_TIMEOUT_S = 10.0
_BE16, _BE32 = struct.Struct(">H"), struct.Struct(">I")
_BE32_AND_MODE = struct.Struct(">IBx")
_SEQUENCES = 1 << 32
# Nothing has come, or the machine has no memory at the moment.
_LATER = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)

_MEANINGS = {
    log_prefix(direction, reason, way).encode(): (direction, reason, way)
    for direction in Direction
    for reason in (*REASONS, Reason.NEW)
    for way in Way
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedPacket:
    """A packet and what the rules of ``direction`` (of the opener, of the answerer) made of it.

    ``packet`` names no server and its direction means nothing. Interfaces are numbers, 0 if there is none.
    """

    direction: Direction
    reason: Reason
    packet: Packet
    way: Way
    in_interface: int
    out_interface: int


class PacketLog:
    """Listens to one nflog group of this network namespace."""

    def __init__(self, group: int, socket_bytes: int = SOCKET_BYTES) -> None:
        """EnforcementError if the kernel does not allow it, or another program listens to ``group`` already."""
        self._group = group
        self._next_sequence = 0
        # Of messages that did not come, since this was opened.
        self.lost = 0
        try:
            self._socket = open_socket()
        except OSError as error:
            raise EnforcementError(f"the kernel's log can't be read: {error.strerror}") from None
        try:
            self._set_up(socket_bytes)
        except OSError as error:
            self._socket.close()
            if error.errno in (errno.EPERM, errno.EBUSY):
                raise EnforcementError(
                    f"another program listens to nflog group {group}: choose one for the agent with --kernel-log-group"
                ) from None
            raise EnforcementError(f"nflog group {group} can't be listened to: {error.strerror}") from None

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def read(self) -> list[LoggedPacket] | None:
        """Return those of the next message of the kernel, up to ``MESSAGES_MAX``, None if none has come."""
        try:
            received = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            if error.errno in _LATER:
                return None
            raise
        found = []
        for message in messages(received):
            if message.kind == _PACKET:
                logged = self._logged(message)
                if logged is not None:
                    found.append(logged)
        return found

    def _set_up(self, socket_bytes: int) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, socket_bytes)
        # Otherwise the kernel sends nothing more, once it has been full, until all has been read.
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        self._socket.settimeout(_ANSWER_TIMEOUT_S)
        self._configure(attribute(_COMMAND, _BIND))
        self._configure(
            attribute(_MODE, _BE32_AND_MODE.pack(_COPIED_BYTES, _COPY_PACKET))
            + attribute(_BUFFER_SIZE, _BE32.pack(_MESSAGE_BYTES_MAX))
            + attribute(_TIMEOUT, _BE32.pack(_WAIT_HUNDREDTHS_S))
            + attribute(_THRESHOLD, _BE32.pack(MESSAGES_MAX))
            + attribute(_FLAGS, _BE16.pack(_WITH_SEQUENCE))
        )
        self._socket.setblocking(False)

    def _configure(self, wanted: bytes) -> None:
        self._socket.send(request(_CONFIG, NLM_F_ACK, 1, socket.AF_UNSPEC, wanted, resource=self._group))
        for _ in range(MESSAGES_MAX):
            for message in messages(self._socket.recv(RECEIVE_BYTES)):
                if message.kind == NLMSG_ERROR:
                    if message.error:
                        raise OSError(message.error, os.strerror(message.error))
                    return
        raise OSError(errno.EIO, "no answer among the messages")

    def _logged(self, message: Message) -> LoggedPacket | None:
        told = message.attributes()
        if _SEQUENCE in told:
            sequence = _number(told, _SEQUENCE)
            self.lost += (sequence - self._next_sequence) % _SEQUENCES
            self._next_sequence = (sequence + 1) % _SEQUENCES
        meaning = _MEANINGS.get(told.get(_PREFIX, b"").rstrip(b"\0"))
        payload = told.get(_PAYLOAD, b"")
        if meaning is None or not payload:
            return None
        try:
            packet = read_damaged_packet(payload[0] >> 4, payload)
        except UnreadableError:
            return None
        direction, reason, way = meaning
        return LoggedPacket(
            direction=direction,
            reason=reason,
            way=way,
            packet=packet,
            in_interface=_number(told, _IN_INTERFACE),
            out_interface=_number(told, _OUT_INTERFACE),
        )


def _number(told: dict[int, bytes], kind: int) -> int:
    return int(_BE32.unpack(told[kind])[0]) if kind in told else 0
