"""One gRPC call on one TCP connection, spoken by hand: a client so cheap that thousands fit beside the server they measure.

Enough of HTTP/2 (RFC 9113) and of gRPC's framing for one bidirectional call without compression on loopback; windows, pings and
settings are honoured, response headers are not looked into.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_STREAM = 1
# What the server may send before it is told that there is room again; told when half of it is used.
_WINDOW_BYTES = 4 << 20
_DEFAULT_WINDOW_BYTES = 65_535


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: str) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value.encode()


def _request_headers(path: str, authority: str) -> bytes:
    """HPACK (RFC 7541) without its dynamic table and without Huffman codes."""
    return (
        b"\x83\x86"  # :method POST, :scheme http
        + b"\x04"
        + _text(path)
        + b"\x01"
        + _text(authority)
        + b"\x0f\x10"
        + _text("application/grpc")
        + b"\x00"
        + _text("te")
        + _text("trailers")
    )


class Call(asyncio.Protocol):
    """One call. ``heard`` gets each message, ``ended`` is called once when it is over, with why."""

    def __init__(self, path: str, heard: Callable[[bytes], None], ended: Callable[[str], None]) -> None:
        self._path = path
        self._heard = heard
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._frames = bytearray()
        self._messages = bytearray()
        self._used_bytes = 0
        self._room = _DEFAULT_WINDOW_BYTES
        self._connection_room = _DEFAULT_WINDOW_BYTES
        self._initial_room = _DEFAULT_WINDOW_BYTES
        self._unsent = bytearray()
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _WINDOW_BYTES)
        more = struct.pack(">I", _WINDOW_BYTES - _DEFAULT_WINDOW_BYTES)
        headers = _request_headers(self._path, "127.0.0.1")
        transport.write(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, window)
            + _frame(_WINDOW_UPDATE, 0, 0, more)
            + _frame(_HEADERS, _END_HEADERS, _STREAM, headers)
        )

    def say(self, message: bytes) -> None:
        """Send one message; it waits while the server has no room for it."""
        self._unsent += struct.pack(">BI", 0, len(message)) + message
        self._send()

    def close(self) -> None:
        """Drop the connection; ``ended`` is not called."""
        self._over = True
        if self._transport is not None:
            self._transport.abort()

    def _send(self) -> None:
        while self._unsent and self._transport is not None and not self._over:
            size = min(len(self._unsent), self._room, self._connection_room, 16_384)
            if size <= 0:
                return
            self._room -= size
            self._connection_room -= size
            self._transport.write(_frame(_DATA, 0, _STREAM, bytes(self._unsent[:size])))
            del self._unsent[:size]

    def data_received(self, data: bytes) -> None:
        self._frames += data
        at = 0
        while len(self._frames) - at >= 9 and not self._over:
            size = int.from_bytes(self._frames[at : at + 3], "big")
            if len(self._frames) - at < 9 + size:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._frames, at + 3)
            payload = bytes(self._frames[at + 9 : at + 9 + size])
            at += 9 + size
            self._take(kind, flags, stream, payload)
        del self._frames[:at]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        assert self._transport is not None
        match kind:
            case 0:
                self._take_data(payload)
            case 1 if flags & _END_STREAM:
                self._end("the server ended the call")
            case 3:
                self._end("the server reset the call")
            case 4 if not flags & _ACK:
                self._take_settings(payload)
            case 6 if not flags & _ACK:
                self._transport.write(_frame(_PING, _ACK, 0, payload))
            case 8:
                more = int.from_bytes(payload, "big")
                if stream:
                    self._room += more
                else:
                    self._connection_room += more
                self._send()

    def _take_settings(self, payload: bytes) -> None:
        assert self._transport is not None
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _INITIAL_WINDOW_SIZE:
                self._room += value - self._initial_room
                self._initial_room = value
        self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        self._send()

    def _take_data(self, payload: bytes) -> None:
        assert self._transport is not None
        self._used_bytes += len(payload)
        if self._used_bytes > _WINDOW_BYTES // 2:
            used = struct.pack(">I", self._used_bytes)
            self._transport.write(_frame(_WINDOW_UPDATE, 0, 0, used) + _frame(_WINDOW_UPDATE, 0, _STREAM, used))
            self._used_bytes = 0
        self._messages += payload
        while len(self._messages) >= 5 and not self._over:
            size = int.from_bytes(self._messages[1:5], "big")
            if len(self._messages) < 5 + size:
                return
            message = bytes(self._messages[5 : 5 + size])
            del self._messages[: 5 + size]
            self._heard(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"connection lost: {exc or 'closed'}")

    def _end(self, reason: str) -> None:
        if self._over:
            return
        self.close()
        self._ended(reason)
