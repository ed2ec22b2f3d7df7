"""The figures of a firewall for the event loop, where nobody is to wait while a million flows are counted."""

from __future__ import annotations

import asyncio

from secgroups.agent.counters import Stats
from secgroups.agent.firewall import Firewall


async def stats_of(firewall: Firewall, now_ns: int) -> Stats:
    """Return the figures of this moment; packets and messages that come while the flows are counted have their turn."""
    for stats in firewall.counting_stats(now_ns):
        if stats is not None:
            return stats
        await asyncio.sleep(0)
    raise AssertionError("a count that does not end with the figures")
