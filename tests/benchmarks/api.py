"""What a rule costs: acknowledged rule creations and reads per second, from 32 clients to a controller with a durable store.

Controller and clients are processes of their own on one machine. Every client has a connection of its own and one call under way.
A creation is acknowledged when it is on disk, so the disk is measured in the same run: an append of 4 KiB and fdatasync, one
by one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from secgroups.lab.stack import Process
from secgroups.v1 import group_service_pb2, rule_service_pb2, types_pb2
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub

CLIENTS = 32
RUNS = 3
MUTATIONS = 6_000
READS = 12_000
# Below the limit of 200 rules a group, so that a group never fills.
RULES_PER_GROUP = 150
WARM_UP = 320
FSYNCS = 300
FSYNC_BYTES = 4096
SEED = 7

Measured = dict[str, float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--client", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--project", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(asyncio.run(drive(options.client, options.project))))
        return
    with tempfile.TemporaryDirectory(prefix="secgroups-bench-") as folder:
        report = measure(Path(folder), say=(lambda text: None) if options.json else print)
    print(json.dumps(report) if options.json else shown(report))


def measure(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return medians over all runs, with the least and the most of each figure."""
    data = folder / "data"
    data.mkdir()
    listen = ["--plaintext", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", str(data)]
    controller = Process(
        name="controller",
        arguments=["secgroups.controller", *listen],
        ready_file=folder / "ready",
        # One line for each change, as in operation.
        log_file=folder / "log",
    )
    controller.start()
    runs: list[Measured] = []
    try:
        for number in range(RUNS):
            fsyncs_per_s = yardstick(folder)
            command = [sys.executable, __file__, "--client", controller.address, "--project", f"bench-{number}"]
            answer = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            run = json.loads(answer.stdout) | {"fsyncs_per_s": fsyncs_per_s}
            run["mutations_per_fsync"] = run["mutations_per_s"] / fsyncs_per_s
            runs.append(run)
            say(f"run {number + 1}: {run['mutations_per_s']:.0f} creations/s, {run['get_per_s']:.0f} reads/s")
    finally:
        controller.stop()
    figures = {name: [run[name] for run in runs] for name in runs[0]}
    return {
        **{name: round(statistics.median(values), 3) for name, values in figures.items()},
        "range": {name: [round(min(values), 3), round(max(values), 3)] for name, values in figures.items()},
        "conditions": conditions(),
    }


def conditions() -> dict[str, Any]:
    """Return what the figures were measured with."""
    return {
        "clients": CLIENTS,
        "runs": RUNS,
        "mutations": MUTATIONS,
        "reads": READS,
        "rules_per_group": RULES_PER_GROUP,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "store": "SQLite, WAL, synchronous=FULL",
        "yardstick": f"append {FSYNC_BYTES} bytes and fdatasync, {FSYNCS} times, same folder, before each run",
    }


def yardstick(folder: Path) -> float:
    """Return how many appends a second the disk makes durable one after another."""
    block = os.urandom(FSYNC_BYTES)
    handle = os.open(folder / "yardstick", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    try:
        started_ns = time.perf_counter_ns()
        for _ in range(FSYNCS):
            os.write(handle, block)
            os.fdatasync(handle)
        return FSYNCS * 1e9 / (time.perf_counter_ns() - started_ns)
    finally:
        os.close(handle)


async def drive(address: str, project: str) -> Measured:
    """Create rules, then read them at random, each from all clients at once; return the figures of one run."""
    # Without its own pool a process shares one connection among all channels to an address.
    channels = [grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) for _ in range(CLIENTS)]
    stubs = [RuleServiceStub(channel) for channel in channels]
    groups = GroupServiceStub(channels[0])
    group_ids = []
    for number in range((MUTATIONS + WARM_UP) // RULES_PER_GROUP + 1):
        made = await groups.CreateGroup(group_service_pb2.CreateGroupRequest(project=project, name=f"group-{number}"))
        group_ids.append(made.group.id)
    requests = [creation(project, group_ids[number % len(group_ids)], number) for number in range(MUTATIONS + WARM_UP)]
    rule_ids: list[str] = []

    async def create(client: int, request: rule_service_pb2.CreateRuleRequest) -> None:
        rule_ids.append((await stubs[client].CreateRule(request)).rule.id)

    async def read(client: int, request: rule_service_pb2.GetRuleRequest) -> None:
        await stubs[client].GetRule(request)

    await together(create, requests[:WARM_UP])
    created = await together(create, requests[WARM_UP:])
    chosen = random.Random(SEED).choices(rule_ids, k=READS)
    got = await together(read, [rule_service_pb2.GetRuleRequest(project=project, id=rule_id) for rule_id in chosen])
    for channel in channels:
        await channel.close()
    if len(set(rule_ids)) != MUTATIONS + WARM_UP:
        raise SystemExit(f"{len(set(rule_ids))} rules were made, not {MUTATIONS + WARM_UP}")
    return {
        "mutations_per_s": created[0],
        "mutation_p50_ms": created[1],
        "mutation_p99_ms": created[2],
        "get_per_s": got[0],
        "get_p50_ms": got[1],
        "get_p99_ms": got[2],
    }


def creation(project: str, group_id: str, number: int) -> rule_service_pb2.CreateRuleRequest:
    """Return the request for a rule that no other number makes."""
    spec = types_pb2.RuleSpec(
        direction=types_pb2.DIRECTION_INGRESS,
        protocol=types_pb2.PROTOCOL_TCP,
        ports=types_pb2.PortRange(first=1 + number, last=1 + number),
        cidr="203.0.113.0/24",
    )
    return rule_service_pb2.CreateRuleRequest(project=project, group_id=group_id, rule=spec)


async def together(call: Callable[[int, Any], Awaitable[None]], requests: Sequence[Any]) -> tuple[float, float, float]:
    """Let every client make its share of ``requests``, one after another; return calls a second, median and p99 in ms."""
    taken_ns: list[int] = []

    async def client(number: int) -> None:
        for request in requests[number::CLIENTS]:
            started_ns = time.perf_counter_ns()
            await call(number, request)
            taken_ns.append(time.perf_counter_ns() - started_ns)

    started_ns = time.perf_counter_ns()
    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    passed_ns = time.perf_counter_ns() - started_ns
    hundredths = statistics.quantiles(taken_ns, n=100)
    return len(requests) * 1e9 / passed_ns, hundredths[49] / 1e6, hundredths[98] / 1e6


def shown(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = []
    for name, (least, most) in report["range"].items():
        lines.append(f"{name:20} {report[name]:>12,.3f}   ({least:,.3f} to {most:,.3f})")
    lines += [f"{name:20} {value}" for name, value in report["conditions"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
