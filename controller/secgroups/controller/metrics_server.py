"""Metrics over HTTP for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from secgroups.controller.errors import ConfigError

# A loop that does not get to it within this time has more urgent things to do.
COLLECT_TIMEOUT_S = 5.0

Collect = Callable[[], Iterable[Metric]]


class MetricsServer:
    """Answers GET /metrics on one loopback address. ``address`` is where, HOST:PORT."""

    def __init__(self, listen: str, collect: Collect, loop: asyncio.AbstractEventLoop) -> None:
        """Serve what ``collect``, called on ``loop``, returns. ConfigError, in one line, if ``listen`` can't be bound."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_OnLoop(collect, loop))
        host, _, port = listen.rpartition(":")
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry)
        except OSError as error:
            raise ConfigError(f"metrics_listen {listen}: {error.strerror}") from None
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
        async def read() -> list[Metric]:
            return list(self._collect())

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(COLLECT_TIMEOUT_S)
