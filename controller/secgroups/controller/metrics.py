"""What the controller shows to Prometheus: figures of this moment, and counts since its start. No label grows with the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric

from secgroups.controller.delays import DelayCounts, Delays

if TYPE_CHECKING:
    from secgroups.controller.clocks import Clocks
    from secgroups.controller.core import Core

_PREFIX = "secgroups_controller_"


@dataclass(slots=True)
class Counts:
    """What is counted as it happens. ``calls`` counts by method and code; streams by how they began."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    message_bytes: int = 0
    unary: Delays = field(default_factory=Delays)


def collect(core: Core, counts: Counts, clocks: Clocks) -> Iterator[Metric]:
    """Yield all metrics. Takes time in proportion to projects and agents."""
    publisher = core.publisher
    yield InfoMetricFamily(f"{_PREFIX}build", "Version of the program", {"version": version("secgroups")})
    yield GaugeMetricFamily(f"{_PREFIX}revision", "Revision of the store", core.state.revision)
    objects = GaugeMetricFamily(f"{_PREFIX}objects", "Objects in the store", labels=["kind"])
    for kind, number in core.state.counts.items():
        objects.add_metric([kind], number)
    yield objects
    yield GaugeMetricFamily(f"{_PREFIX}mutations_waiting", "Mutations that wait for the disk", core.waiting)
    fleet = publisher.fleet()
    agents = GaugeMetricFamily(f"{_PREFIX}agents", "Agents that guard a server or are connected, by state", labels=["state"])
    states = {
        "known": fleet.known,
        "connected": fleet.connected,
        "lagging": fleet.lagging,
        "rejecting": fleet.rejecting,
        "holding_back": fleet.holding_back,
    }
    for state, number in states.items():
        agents.add_metric([state], number)
    yield agents
    since_us = fleet.oldest_lag_since_us
    lag_s = 0.0 if since_us is None else max(0, clocks.now_us() - since_us) / 1e6
    yield GaugeMetricFamily(f"{_PREFIX}oldest_lag_seconds", "Age of the oldest change that an agent does not have in force", lag_s)
    in_force = publisher.commit_to_in_force
    yield _histogram(f"{_PREFIX}commit_to_in_force_seconds", "From a commit until all agents that it touched said so", in_force)
    streams = CounterMetricFamily(f"{_PREFIX}streams", "Streams of agents that began, by how", labels=["mode"])
    for mode, number in sorted(counts.streams.items()):
        streams.add_metric([mode], number)
    yield streams
    yield CounterMetricFamily(f"{_PREFIX}stream_messages", "Messages sent to agents", counts.messages)
    yield CounterMetricFamily(f"{_PREFIX}stream_message_bytes", "Bytes of messages sent to agents", counts.message_bytes)
    calls = CounterMetricFamily(f"{_PREFIX}rpcs", "Calls that were answered", labels=["method", "code"])
    for (method, code), number in sorted(counts.calls.items()):
        calls.add_metric([method, code], number)
    yield calls
    yield _histogram(f"{_PREFIX}unary_rpc_seconds", "How long calls without a stream took", counts.unary.counted())


def _histogram(name: str, text: str, delays: DelayCounts) -> HistogramMetricFamily:
    """Return delays as a histogram of seconds."""
    buckets: list[tuple[str, float]] = []
    seen = 0
    for bound_us, count in zip(delays.bounds_us, delays.counts, strict=False):
        seen += count
        buckets.append((f"{bound_us / 1e6:g}", seen))
    buckets.append(("+Inf", sum(delays.counts)))
    return HistogramMetricFamily(name, text, buckets, delays.sum_us / 1e6)
