"""What survives: a controller killed again and again while it is written to, and a fleet beside clients that are hostile or broken.

``kills``: a controller on a durable store is killed with SIGKILL at a random instant while clients create groups, rules in bulk and
servers, and started again on the same file. Whatever was acknowledged must be there, of a bulk call all or nothing, and the
revision must never go back; an agent that lives through it all must be in step at the end.

``load_held``: 1,000 simulated agents, 50 changes a second, each for one agent, and beside the clients that behave one in ten that
does not: garbage on the socket, calls that nobody waits for, streams that are opened and left, names of 4 MiB, a hello and silence,
watches that nobody reads, and an end by its own hand.

``matrix``: every call by everybody. ``fuzz``: every parser and decoder fed inputs that nobody sends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from _kills import kills
from fanout import AGENTS, Site, conditions, rounded

from secgroups.v1 import agent_service_pb2 as agents_pb
from secgroups.v1 import group_service_pb2 as groups_pb
from secgroups.v1 import ruleset_service_pb2 as rulesets_pb
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub

ROOT = Path(__file__).resolve().parents[2]
KILLS = 200
SEED = 11
HELD_S = 300.0
# For each target; more, and led by what they reach, with scripts/test --fuzz.
FUZZ_EXECUTIONS = 1_000
CHANGES_PER_S = 50
GOOD_CLIENTS, HOSTILE_CLIENTS = 9, 1
CALL_TIMEOUT_S = 10.0
LAST_ACT_CHANCE = 0.02
# The fleet and the hostile client speak plain text, where nobody is asked who it is: what one token may hold with TLS.
WATCHERS_MAX = 1_000


async def load_held(folder: Path, agents: int, seconds: float) -> dict[str, Any]:
    """Hold a load for a while; return what became of those who behave, and of the memory."""
    site = Site(folder, agents, agents, "--watchers-max", str(WATCHERS_MAX))
    hostile: list[subprocess.Popen[bytes]] = []
    replacing: asyncio.Task[None] | None = None
    try:
        fleet = await site.connect()
        hostile = [_start_hostile(site) for _ in range(HOSTILE_CLIENTS)]
        replacing = asyncio.create_task(_replace_dead(hostile, site))
        await asyncio.sleep(5)
        rss_kb, cpu_s = site.rss_kb(), site.cpu_s()
        taken_ms: list[float] = []
        errors: Counter[str] = Counter()
        chance = random.Random(SEED)
        fleet.take()

        async def client(number: int) -> None:
            pause_s = GOOD_CLIENTS / CHANGES_PER_S
            next_s = time.perf_counter() + pause_s * number / GOOD_CLIENTS
            turn = 0
            while next_s < end_s:
                await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
                begun_s = time.perf_counter()
                try:
                    await asyncio.wait_for(
                        site.operator.change_own(chance.randrange(agents), 1_000 + turn % 60_000), CALL_TIMEOUT_S
                    )
                    taken_ms.append((time.perf_counter() - begun_s) * 1e3)
                except (grpc.aio.AioRpcError, TimeoutError) as error:
                    errors[error.code().name if isinstance(error, grpc.aio.AioRpcError) else "TIMEOUT"] += 1
                turn += 1
                next_s += pause_s

        begun_s = time.perf_counter()
        end_s = begun_s + seconds
        await asyncio.gather(*(client(number) for number in range(GOOD_CLIENTS)))
        held_s = time.perf_counter() - begun_s
        delays_ms = [delay_us / 1e3 for _, _, delay_us in fleet.take()]
        hundredths, calls = statistics.quantiles(delays_ms, n=100), statistics.quantiles(taken_ms, n=100)
        answers = fleet.ask("status")
        return {
            "load_held": {
                "seconds": held_s,
                "changes": len(taken_ms),
                "errors": dict(errors),
                "agents_lost": sum(count for answer in answers for count in answer["ends"].values()),
                "call_p50_ms": calls[49],
                "call_p99_ms": calls[98],
                "in_force_p50_ms": hundredths[49],
                "in_force_p99_ms": hundredths[98],
                "memory_start_mb": rss_kb / 1024,
                "memory_end_mb": site.rss_kb() / 1024,
                "cpu_share": (site.cpu_s() - cpu_s) / held_s,
                "hostile_clients_started": len(hostile),
            }
        }
    finally:
        if replacing is not None:
            replacing.cancel()
        for each in hostile:
            each.kill()
            each.wait()
        await site.stop()


def _start_hostile(site: Site) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(Path(__file__)), "--hostile", site.controller.address])


async def _replace_dead(hostile: list[subprocess.Popen[bytes]], site: Site) -> None:
    """Start another hostile client for each that has killed itself, until cancelled."""
    while True:
        await asyncio.sleep(0.2)
        alive = sum(each.poll() is None for each in hostile)
        hostile += [_start_hostile(site) for _ in range(HOSTILE_CLIENTS - alive)]


async def be_hostile(address: str) -> None:
    """Do what one must not, by turns, until killed."""
    host, _, port = address.rpartition(":")
    chance = random.Random(os.getpid())
    left: list[socket.socket] = []
    channel = grpc.aio.insecure_channel(address)
    groups, agents, rulesets = GroupServiceStub(channel), AgentServiceStub(channel), RulesetServiceStub(channel)
    while True:
        match chance.randrange(6):
            case 0:
                with suppress(OSError):
                    left.append(socket.create_connection((host, int(port)), timeout=2))
                    left[-1].sendall(chance.randbytes(4_096))
                while len(left) > 200:
                    left.pop(0).close()
            case 1:
                calls = [groups.ListGroups(groups_pb.ListGroupsRequest(project="fanout", page_size=1000)) for _ in range(20)]
                for call in calls:
                    call.cancel()
            case 2:
                with suppress(grpc.aio.AioRpcError):
                    await groups.CreateGroup(groups_pb.CreateGroupRequest(project="fanout", name="x" * (4 << 20)), timeout=5)
            case 3:
                stream = agents.Subscribe()
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    hello = agents_pb.Hello(agent_id=f"stranger-{chance.randrange(1_000)}", boot_id="b", version="1")
                    await stream.write(agents_pb.SubscribeRequest(hello=hello))
                if chance.random() < 0.5:
                    stream.cancel()
            case 4:
                request = rulesets_pb.WatchEffectiveRulesetRequest(project="fanout", server_id="s1")
                for _ in range(20):
                    rulesets.WatchEffectiveRuleset(request)
            case 5:
                # Once in half a minute or so: connections and streams end without a word.
                if chance.random() < LAST_ACT_CHANCE:
                    os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.1)


def auth_matrix(folder: Path) -> dict[str, Any]:
    """Make every call as everybody there is, as ``tests/trust/test_matrix.py`` does; count those that got more than they may."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/trust/test_matrix.py", "-s"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "SECGROUPS_COUNT_CELLS": str(folder / "cells")}, capture_output=True, check=False
    )
    cells = (folder / "cells").read_text().split() if (folder / "cells").exists() else []
    return {"auth_matrix_cells": len(cells), "leaks": cells.count("leak") + (done.returncode != 0)}


def fuzz(executions: int) -> dict[str, Any]:
    """Feed every parser and decoder so many inputs, by chance; count those that broke one."""
    sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
    from targets import TARGETS

    ran: dict[str, int] = {}
    crashes = 0
    for target in TARGETS:
        command = [sys.executable, "tests/fuzz/fuzz.py", target, "--runs", str(executions), "--engine", "chance"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        # A target ends at the first input that breaks it.
        ran[target] = executions if done.returncode == 0 else 0
        crashes += done.returncode != 0
    return {"fuzz_executions": ran, "crashes": crashes}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parts = ("kills", "matrix", "fuzz", "load")
    parser.add_argument("--only", default=",".join(parts), help="some of " + ",".join(parts))
    parser.add_argument("--kills", type=int, help=f"how often to kill ({KILLS})")
    parser.add_argument("--seconds", type=float, help=f"how long to hold the load ({HELD_S:g})")
    parser.add_argument("--agents", type=int, default=AGENTS, help=f"how many agents are under load ({AGENTS})")
    parser.add_argument("--hostile", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hostile:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        asyncio.run(be_hostile(options.hostile))
        return
    only, share = set(options.only.split(",")), 10 if options.quick else 1
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="secgroups-bench-") as name:
        folder = Path(name)
        if "kills" in only:
            found |= kills(folder / "kills", options.kills or KILLS // share)
        if "matrix" in only:
            found |= auth_matrix(folder)
        if "fuzz" in only:
            found |= fuzz(FUZZ_EXECUTIONS // share)
        if "load" in only:
            found |= asyncio.run(load_held(folder / "load", options.agents, options.seconds or HELD_S / share))
    report = {key: rounded(value) for key, value in found.items()} | {"conditions": conditions()}
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
