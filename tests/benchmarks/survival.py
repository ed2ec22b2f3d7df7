"""What survives: a controller killed again and again while it is written to, and a fleet beside clients that are hostile or broken.

``kills``: a controller on a durable store is killed with SIGKILL at a random instant while clients create groups, rules in bulk and
servers, and started again on the same file. Whatever was acknowledged must be there, of a bulk call all or nothing, and the
revision must never go back; an agent that lives through it all must be in step at the end.

``load_held``: 1,000 simulated agents, 50 changes a second, each for one agent, and beside the clients that behave one in ten that
does not: garbage on the socket, calls that nobody waits for, streams that are opened and left, names of 4 MiB, a hello and silence.
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
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from fanout import AGENTS, Site, conditions, rounded

from secgroups.lab.stack import Process
from secgroups.v1 import agent_service_pb2 as agents_pb
from secgroups.v1 import group_service_pb2 as groups_pb
from secgroups.v1 import rule_service_pb2 as rules_pb
from secgroups.v1 import ruleset_service_pb2 as rulesets_pb
from secgroups.v1 import server_service_pb2 as servers_pb
from secgroups.v1 import types_pb2 as types
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

PROJECT = "survival"
KILLS = 200
WRITERS = 4
RULES_PER_CALL = 5
ALIVE_S = (0.02, 0.4)
SEED = 11
HELD_S = 300.0
CHANGES_PER_S = 50
GOOD_CLIENTS, HOSTILE_CLIENTS = 9, 1
CALL_TIMEOUT_S = 10.0


@dataclass
class Acknowledged:
    """What clients were told is so."""

    groups: set[str] = field(default_factory=set)
    bulk: dict[str, str] = field(default_factory=dict)
    servers: set[str] = field(default_factory=set)
    revision: int = 0


class Writer(threading.Thread):
    """Writes until the controller is gone; notes each answer."""

    def __init__(self, address: str, name: str, number: int, told: Acknowledged, lock: threading.Lock) -> None:
        super().__init__(daemon=True)
        self._address, self._name, self._number, self._told, self._lock = address, name, number, told, lock

    def run(self) -> None:
        with grpc.insecure_channel(self._address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            groups, rules, servers = GroupServiceStub(channel), RuleServiceStub(channel), ServerServiceStub(channel)
            turn = 0
            with suppress(grpc.RpcError):
                while True:
                    unit = f"{self._name}-{self._number}-{turn}"
                    group = groups.CreateGroup(groups_pb.CreateGroupRequest(project=PROJECT, name=unit), timeout=CALL_TIMEOUT_S)
                    self._note(group.revision, lambda unit=unit: self._told.groups.add(unit))
                    specs = [_allow(port, unit) for port in range(1, RULES_PER_CALL + 1)]
                    request = rules_pb.BatchCreateRulesRequest(project=PROJECT, group_id=group.group.id, rules=specs)
                    made = rules.BatchCreateRules(request, timeout=CALL_TIMEOUT_S)
                    self._note(made.revision, lambda unit=unit, own=group.group.id: self._told.bulk.setdefault(unit, own))
                    server = servers_pb.CreateServerRequest(
                        project=PROJECT, id=unit, addresses=[_address(unit)], agent_id="survivor", group_ids=[group.group.id]
                    )
                    placed = servers.CreateServer(server, timeout=CALL_TIMEOUT_S)
                    self._note(placed.revision, lambda unit=unit: self._told.servers.add(unit))
                    turn += 1

    def _note(self, revision: int, note: Any) -> None:
        with self._lock:
            note()
            self._told.revision = max(self._told.revision, revision)


def _allow(port: int, unit: str) -> types.RuleSpec:
    return types.RuleSpec(
        direction=types.DIRECTION_INGRESS,
        protocol=types.PROTOCOL_TCP,
        ports=types.PortRange(first=port),
        anywhere=types.Anywhere(),
        description=unit,
    )


def _address(unit: str) -> str:
    """Return an address for each unit, of one and the same prefix."""
    first, second, third = (int(part) for part in unit.split("-"))
    number = (first * WRITERS + second) * 4_096 + third
    return f"2001:db8::{number >> 16:x}:{number & 0xFFFF:x}"


def kills(folder: Path, count: int) -> dict[str, Any]:
    """Kill, start again, compare."""
    chance, told, lock = random.Random(SEED), Acknowledged(), threading.Lock()
    limits = [f"--{name}" for name in ("groups-per-project", "servers-per-project")]
    flags = [word for flag in limits for word in (flag, "1000000")]
    controller = Process(
        name="controller",
        arguments=[
            *("secgroups.controller", "--plaintext", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"),
            *("--create", "--data-dir", str(folder / "data"), *flags, "--log-level", "warning"),
        ],
        ready_file=folder / "ready",
        log_file=folder / "log",
    )
    controller.start()
    controller.arguments[3] = controller.address
    (folder / "state").mkdir()
    agent = Process(
        name="agent",
        arguments=[
            *("secgroups.agent", "--plaintext", "--agent-id", "survivor", "--state-dir", str(folder / "state")),
            *("--controller", controller.address, "--listen", "127.0.0.1:0", "--reconnect-max-s", "1"),
        ],
        ready_file=folder / "agent-ready",
        log_file=folder / "agent-log",
    )
    agent.start()
    lost = halves = back = 0
    start_s: list[float] = []
    try:
        for number in range(count):
            writers = [Writer(controller.address, str(number), each, told, lock) for each in range(WRITERS)]
            for writer in writers:
                writer.start()
            time.sleep(chance.uniform(*ALIVE_S))
            controller.kill()
            for writer in writers:
                writer.join()
            begun_s = time.perf_counter()
            controller.start()
            start_s.append(time.perf_counter() - begun_s)
            with grpc.insecure_channel(controller.address) as channel:
                found = _found(channel)
            lost += len(told.groups - found.groups) + len(told.bulk.keys() - found.bulk.keys()) + len(told.servers - found.servers)
            halves += sum(held not in (0, RULES_PER_CALL) for held in found.rules.values())
            back += found.revision < told.revision
            print(f"{number + 1} of {count} kills, {len(told.groups)} groups, {lost} lost", file=sys.stderr, flush=True)
        with grpc.insecure_channel(controller.address) as channel:
            request = rulesets_pb.WaitForRevisionRequest(revision=found.revision)
            request.timeout.FromSeconds(60)
            converged = RulesetServiceStub(channel).WaitForRevision(request, timeout=70).in_force
            seen = AgentServiceStub(channel).GetAgent(agents_pb.GetAgentRequest(id="survivor"), timeout=CALL_TIMEOUT_S).agent
    finally:
        agent.stop()
        controller.stop()
    return {
        "kills": count,
        "acknowledged": len(told.groups) + len(told.bulk) + len(told.servers),
        "acknowledged_lost": lost,
        "half_changes": halves,
        "revision_went_back": back,
        "agent_converged": converged and seen.applied_revision == found.revision,
        "restart_s": statistics.median(start_s),
    }


@dataclass
class _Found:
    groups: set[str]
    rules: Counter[str]
    servers: set[str]
    revision: int

    @property
    def bulk(self) -> Counter[str]:
        return self.rules


def _found(channel: grpc.Channel) -> _Found:
    """Return all that there is."""
    found = _Found(set(), Counter(), set(), 0)
    stubs = GroupServiceStub(channel), RuleServiceStub(channel), ServerServiceStub(channel)
    for call, request in (
        (stubs[0].ListGroups, groups_pb.ListGroupsRequest(project=PROJECT, page_size=1000)),
        (stubs[1].ListRules, rules_pb.ListRulesRequest(project=PROJECT, page_size=1000)),
        (stubs[2].ListServers, servers_pb.ListServersRequest(project=PROJECT, page_size=1000)),
    ):
        while True:
            page = call(request, timeout=CALL_TIMEOUT_S)
            found.groups |= {group.name for group in getattr(page, "groups", ())}
            found.rules.update(rule.spec.description for rule in getattr(page, "rules", ()) if "-" in rule.spec.description)
            found.servers |= {server.id for server in getattr(page, "servers", ())}
            found.revision = max(found.revision, page.revision)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    return found


async def load_held(folder: Path, seconds: float) -> dict[str, Any]:
    """Hold a load for a while; return what became of those who behave, and of the memory."""
    site = Site(folder, AGENTS, AGENTS)
    hostile: list[subprocess.Popen[bytes]] = []
    try:
        fleet = await site.connect()
        hostile = [
            subprocess.Popen([sys.executable, str(Path(__file__)), "--hostile", site.controller.address])
            for _ in range(HOSTILE_CLIENTS)
        ]
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
                        site.operator.change_own(chance.randrange(AGENTS), 1_000 + turn % 60_000), CALL_TIMEOUT_S
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
                "hostile_clients_alive": sum(each.poll() is None for each in hostile),
            }
        }
    finally:
        for each in hostile:
            each.kill()
            each.wait()
        await site.stop()


async def be_hostile(address: str) -> None:
    """Do what one must not, by turns, until killed."""
    host, _, port = address.rpartition(":")
    chance = random.Random(os.getpid())
    left: list[socket.socket] = []
    channel = grpc.aio.insecure_channel(address)
    groups, agents, rulesets = GroupServiceStub(channel), AgentServiceStub(channel), RulesetServiceStub(channel)
    while True:
        match chance.randrange(5):
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
        await asyncio.sleep(0.1)


def auth_matrix(folder: Path) -> dict[str, Any]:
    """Make every call as everybody there is, as ``tests/trust/test_matrix.py`` does; count those that got more than they may."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/trust/test_matrix.py", "-s"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "SECGROUPS_COUNT_CELLS": str(folder / "cells")}, capture_output=True, check=False
    )
    cells = (folder / "cells").read_text().split() if (folder / "cells").exists() else []
    return {"auth_matrix_cells": len(cells), "leaks": cells.count("leak") + (done.returncode != 0)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parts = ("kills", "matrix", "load")
    parser.add_argument("--only", default=",".join(parts), help="some of " + ",".join(parts))
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
            (folder / "kills").mkdir()
            found |= kills(folder / "kills", KILLS // share)
        if "matrix" in only:
            found |= auth_matrix(folder)
        if "load" in only:
            found |= asyncio.run(load_held(folder / "load", HELD_S / share))
    report = {key: rounded(value) for key, value in found.items()} | {"conditions": conditions()}
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
