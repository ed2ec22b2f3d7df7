"""What the agent shows to Prometheus: figures of this moment, and counts since its start. No label grows with the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric

from secgroups.agent.delays import DelayCounts
from secgroups.agent.figures import stats_of
from secgroups.agent.flow import Reason
from secgroups.agent.kernel.flows import find_setting

if TYPE_CHECKING:
    from secgroups.agent.cache_writer import CacheWriter
    from secgroups.agent.counters import Stats
    from secgroups.agent.firewall import Firewall
    from secgroups.agent.kernel.enforcer import KernelEnforcer
    from secgroups.agent.replica import Replica
    from secgroups.agent.subscription import Subscription

_PREFIX = "secgroups_agent_"


async def collect(
    firewall: Firewall,
    replica: Replica,
    subscription: Subscription,
    writer: CacheWriter,
    clock: Callable[[], int],
    version: str,
    kernel: KernelEnforcer | None = None,
) -> list[Metric]:
    """Return all metrics as of now by ``clock``, monotonic nanoseconds.

    If the kernel enforces, its denials count in, and flows are its connections: those of the whole host, which it has counted.
    """
    now_ns = clock()
    stats = await stats_of(firewall, now_ns)
    return list(_metrics(stats, now_ns, replica, subscription, writer, version, kernel))


def _metrics(
    stats: Stats,
    now_ns: int,
    replica: Replica,
    subscription: Subscription,
    writer: CacheWriter,
    version: str,
    kernel: KernelEnforcer | None,
) -> Iterator[Metric]:
    denied = kernel.denied() if kernel is not None else {}
    flows, flows_max = stats.flows, stats.flows_max
    if kernel is not None:
        flows, flows_max = find_setting("count") or 0, find_setting("max") or 0
    yield InfoMetricFamily(f"{_PREFIX}build", "Version of the program", {"version": version})
    yield GaugeMetricFamily(f"{_PREFIX}connected", "Whether there is a stream from the controller", subscription.connected)
    if subscription.last_heard_ns is not None:
        staleness_s = max(0, now_ns - subscription.last_heard_ns) / 1e9
        yield GaugeMetricFamily(f"{_PREFIX}staleness_seconds", "Since the controller was last heard of", staleness_s)
    gauges = {
        "applied_revision": ("Revision in force", replica.revision),
        "from_cache": ("Whether what is in force comes from the disk, not yet from the controller", replica.from_cache),
        "held_back": ("Whether a snapshot is held back", replica.held_back is not None),
        "rejected_objects": ("Objects that can't be enforced in their latest version", replica.rejected_count),
        "servers": ("Servers that are guarded", len(replica.ruleset.servers)),
        "flows": ("Flows that are tracked", flows),
        "flows_max": ("Flows that can be tracked", flows_max),
    }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(f"{_PREFIX}{name}", text, value)
    verdicts = CounterMetricFamily(f"{_PREFIX}verdicts", "Verdicts that were given", labels=["reason"])
    for reason in Reason:
        verdicts.add_metric([reason.name], stats.verdicts.get(reason, 0) + denied.get(reason, 0))
    yield verdicts
    yield CounterMetricFamily(f"{_PREFIX}flows_evicted", "Flows that made room for others", stats.evicted)
    yield CounterMetricFamily(f"{_PREFIX}cache_write_failures", "Times that the state could not be saved", writer.failures)
    yield _histogram(
        f"{_PREFIX}commit_to_in_force_seconds",
        "From the commit of a change until it was in force here",
        subscription.commit_to_in_force.counted(),
    )
    yield _histogram(f"{_PREFIX}apply_seconds", "How long updates took to apply", subscription.apply_times.counted())


def _histogram(name: str, text: str, delays: DelayCounts) -> HistogramMetricFamily:
    buckets: list[tuple[str, float]] = []
    seen = 0
    for bound_us, count in zip(delays.bounds_us, delays.counts, strict=False):
        seen += count
        buckets.append((f"{bound_us / 1e6:g}", seen))
    buckets.append(("+Inf", sum(delays.counts)))
    return HistogramMetricFamily(name, text, buckets, delays.sum_us / 1e6)
