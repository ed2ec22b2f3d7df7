"""Metrics over HTTP for Prometheus."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from secgroups.agent.errors import ConfigError

# A loop that does not get to it within this time has more urgent things to do.
COLLECT_TIMEOUT_S = 5.0
# Who asks, or takes the answer, more slowly than this is left.
IO_TIMEOUT_S = 5.0
# Connections at one time; more are closed at once.
CONNECTIONS_MAX = 16

Collect = Callable[[], Coroutine[None, None, Iterable[Metric]]]


class MetricsServer:
    """Answers GET /metrics on one loopback address. ``address`` is where, HOST:PORT."""

    def __init__(self, listen: str, collect: Collect, loop: asyncio.AbstractEventLoop) -> None:
        """Serve what ``collect``, called on ``loop``, returns. ConfigError, in one line, if ``listen`` can't be bound."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_OnLoop(collect, loop))
        host, _, port = listen.rpartition(":")
        try:
            self._server = _server(host.strip("[]"), int(port))
        except OSError as error:
            raise ConfigError(f"metrics_listen {listen}: {error.strerror}") from None
        self._server.set_app(_only_metrics(make_wsgi_app(registry)))
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.address = f"{host}:{self._server.server_port}"

    async def stop(self) -> None:
        """Stop answering."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)


class _OnLoop(Collector):
    """The library answers in threads of its own; what it shows belongs to the event loop and is read there."""

    def __init__(self, collect: Collect, loop: asyncio.AbstractEventLoop) -> None:
        self._collect = collect
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        return asyncio.run_coroutine_threadsafe(self._collect(), self._loop).result(COLLECT_TIMEOUT_S)


class _Handler(WSGIRequestHandler):
    timeout = IO_TIMEOUT_S

    def log_message(self, *_: Any) -> None:
        """Say nothing: scrapes are many."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each of a bounded number of connections."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int]) -> None:
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: whoever asked has gone."""


def _server(host: str, port: int) -> _Server:
    """Listen on ``host``, an address of either family. OSError if that can't be."""
    family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
    kind = type("_Server", (_Server,), {"address_family": family})
    server: _Server = kind((host, port))
    return server


def _only_metrics(answer: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Answer GET /metrics with ``answer``, all else with an error."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status = None
        if environ.get("PATH_INFO") != "/metrics":
            status = HTTPStatus.NOT_FOUND
        elif environ.get("REQUEST_METHOD") != "GET":
            status = HTTPStatus.METHOD_NOT_ALLOWED
        if status is None:
            return answer(environ, start_response)
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain"), ("Allow", "GET")])
        return [b"GET /metrics is all there is\n"]

    return app
