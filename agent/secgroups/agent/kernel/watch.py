"""Hears of changes that other processes make to our tables (NFNLGRP_NFTABLES): the kernel tells objects, then who changed them."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Container
from dataclasses import dataclass

from secgroups.agent.kernel.netlink import RECEIVE_BYTES, Message, messages, open_socket

# linux/netfilter/nf_tables.h
_GROUP_NFTABLES = 1 << (7 - 1)
_SUBSYSTEM = 10
_NEW_GENERATION = 15
_GENERATION_PID, _GENERATION_NAME = 2, 3
# The first attribute of every object is the name of its table.
_TABLE_NAME = 1
# asm-generic/socket.h; Python has no name for it.
_SO_RCVBUFFORCE = 33
_BE32 = struct.Struct(">I")
# What a transaction with ten thousand elements is told in; more than that is noticed and counts as a change.
_BUFFER_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Culprit:
    """The process that changed a table; pid 0 if that is not known."""

    pid: int
    name: str


class TableWatch:
    """Calls ``changed`` when a process not in ``own_pids`` has touched a table whose name begins with ``prefix``."""

    def __init__(self, prefix: str, own_pids: Container[int], changed: Callable[[Culprit], None]) -> None:
        self._prefix = prefix.encode()
        self._own_pids = own_pids
        self._changed = changed
        self._socket: socket.socket | None = None
        self._touched = False

    def start(self) -> None:
        """Begin to listen in the running loop. OSError if that is not allowed."""
        made = open_socket(_GROUP_NFTABLES)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        asyncio.get_running_loop().add_reader(made.fileno(), self._read)
        self._socket = made

    def stop(self) -> None:
        """End listening."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            received = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._touched = False
            self._changed(Culprit(0, ""))
            return
        for message in messages(received):
            if message.kind >> 8 == _SUBSYSTEM:
                self._take(message)

    def _take(self, message: Message) -> None:
        told = message.attributes()
        if message.kind & 0xFF != _NEW_GENERATION:
            self._touched = self._touched or told.get(_TABLE_NAME, b"").startswith(self._prefix)
            return
        touched, self._touched = self._touched, False
        pid = _BE32.unpack(told.get(_GENERATION_PID, bytes(4)))[0]
        if touched and pid not in self._own_pids:
            self._changed(Culprit(pid, told.get(_GENERATION_NAME, b"").rstrip(b"\0").decode(errors="replace")))
