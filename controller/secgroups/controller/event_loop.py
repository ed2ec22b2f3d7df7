"""The event loop of the controller: asyncio's own, spared the idle turns that gRPC would have it make.

gRPC's thread writes a byte for each event that it has, and the loop takes all events at the first of them: each of the other bytes
then costs a turn of the loop in which there is nothing to do. With a thousand streams these are most of its turns.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

WAKES_MAX = 4_096


class EventLoop(asyncio.SelectorEventLoop):
    """A selector event loop that takes what wakes it for gRPC all at once."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        """Call ``callback`` when ``fd`` can be read, as asyncio does."""
        if isinstance(fd, socket.socket) and _is_of_grpc(callback):
            callback, args = partial(_read_once, fd, callback, *args), ()
        super().add_reader(fd, callback, *args)


def _is_of_grpc(callback: Callable[..., Any]) -> bool:
    bound = callback.func if isinstance(callback, partial) else callback
    return type(getattr(bound, "__self__", None)).__name__ == "PollerCompletionQueue"


def _read_once(wakes: socket.socket, take_events: Callable[..., None], *args: Any) -> None:
    """Leave one byte, which ``take_events`` reads before it takes all events: those of the bytes dropped here are among them."""
    waiting = len(wakes.recv(WAKES_MAX, socket.MSG_PEEK))
    if waiting > 1:
        wakes.recv(waiting - 1)
    take_events(*args)
