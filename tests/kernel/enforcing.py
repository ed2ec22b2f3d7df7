"""A controller and an agent as processes in the router, the agent enforcing there; packets between a client and server web."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))
sys.path.insert(0, str(Path(__file__).parents[1] / "system"))

from frames import frame
from netns import World
from running_system import System

from secgroups.agent.flow import Packet

WEB4, CLIENT = "10.0.0.9", "203.0.113.7"
AGENT = "router-1"


@contextmanager
def enforcing_system(world: World, folder: Path) -> Iterator[System]:
    """Run them, with no connections of before; the kernel is cleaned up behind them."""
    subprocess.run(["conntrack", "-F"], capture_output=True)
    made = System(folder, [])
    try:
        made.start()
        # gRPC's threads may be of another namespace than this test's: on a socket in a folder they find it all the same.
        made.stack.start_agent(AGENT, "--listen", f"unix:{folder}/agent.sock")
        yield made
    finally:
        made.stop()
        done = _clean_up(folder)
        assert done.returncode == 0, done.stderr
        assert "secgroups" not in world.nft("list", "tables")


def _clean_up(folder: Path) -> subprocess.CompletedProcess[str]:
    state = folder / "cleaned"
    state.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "secgroups.agent", "--agent-id", AGENT, "--state-dir", str(state), "--clean-up"]
    return subprocess.run([*command, "--enforce", "nftables"], capture_output=True, text=True, timeout=60)


def passes(world: World, packet: Packet) -> bool:
    """Whether it gets from the client to web, or from web to the client."""
    source, destination = ("client", "web") if str(packet.source) == CLIENT else ("web", "client")
    return world.passes(source, frame(packet), destination)
