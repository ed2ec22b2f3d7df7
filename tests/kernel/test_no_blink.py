"""While rules are swapped, nothing that must not pass does, and nothing that may is lost."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import udp
from frames import frame
from netns import World
from rig import DB, EGRESS, WEB, Rig, allow

from secgroups.agent.kernel.enforcer import KernelEnforcer
from secgroups.agent.kernel.settings import KernelSettings

WEB4, DB4, CLIENT = "10.0.0.9", "10.0.0.5", "203.0.113.7"
SWAPS = int(os.environ.get("SECGROUPS_KERNEL_SWAPS", "60"))
DNS = allow("5-dns", protocol=17, ports=53)


class Flood(threading.Thread):
    """Sends packets that may pass and packets that must not, as fast as it can, beside all that the test does."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._allowed = frame(udp(CLIENT, WEB4, 53))
        self._refused = frame(udp(CLIENT, WEB4, 54))
        self.stopping = threading.Event()
        self.sent = self.came = self.slipped = 0

    def run(self) -> None:
        # The test and nft are on the first processor.
        os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
        while not self.stopping.is_set():
            for _ in range(10):
                self._world.wires["client"].send(self._allowed)
                self.sent += 1
                self._world.wires["client"].send(self._refused)
            for packet in self._world.settle("client", "web"):
                self.came += packet[20:] == self._allowed[20:]
                self.slipped += packet[20:] == self._refused[20:]


@pytest.mark.parametrize("swap", ["rules", "members", "bindings", "agents"])
async def test_a_flood_notices_nothing_of_swaps(rig: Rig, swap: str) -> None:
    await rig.change(
        groups={"web": [DNS], "more": [], "db": [allow("d", group="friends")]},
        servers={WEB: ["web", "more"], DB: ["db"]},
        members={"friends": [DB4]},
    )
    await rig.stamped()
    assert rig.passes(udp(CLIENT, WEB4, 53))
    flood = Flood(rig.world)
    flood.start()
    try:
        for turn in range(SWAPS if swap != "agents" else SWAPS // 10):
            match swap:
                case "rules":
                    # The rule that lets it pass is looked up among others, by network, by group, or another takes its place.
                    other = allow(f"{turn}-x", EGRESS, protocol=6, ports=turn + 1)
                    same = allow("9-net", protocol=17, ports=53, network="203.0.113.0/24")
                    await rig.change(groups={"more": [other, same][: turn % 3], "web": [DNS] if turn % 3 != 2 else []})
                case "members":
                    await rig.change(members={"friends": [DB4, f"192.0.2.{turn % 250}"] if turn % 2 else [DB4]})
                case "bindings":
                    await rig.change(servers={WEB: ["web", "more", "db"] if turn % 2 else ["web"]})
                case "agents":
                    await rig.enforcer.stop()
                    rig.enforcer = KernelEnforcer(KernelSettings())
                    await rig.enforcer.start(rig.ruleset)
                    await rig.stamped()
    finally:
        flood.stopping.set()
        flood.join()
    assert flood.sent > 0
    assert (flood.sent - flood.came, flood.slipped) == (0, 0)
