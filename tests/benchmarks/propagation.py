"""What the size of the model costs: a start with 100,000 servers, changes in the midst of them, a first sync, a new member.

Controllers and agents are processes of their own on loopback; each model is a database file that was filled through the real
store, a revision for each change (see ``estate``). A start is cold: a new process, and the file not in memory. Times of agents are
their own: a first sync lasts from the hello, as the controller logs it, until the agent logs that the snapshot is in force.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

sys.path.insert(0, str(Path(__file__).parent))

import estate
from changes import FLAGS, Driver, Watcher

from secgroups.lab.stack import Process
from secgroups.v1 import agent_service_pb2, server_service_pb2
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

LARGE = estate.Size(servers=100_000, groups=10_000, rules=100_000)
SMALL = estate.Size(servers=10_000, groups=1_000, rules=10_000)
TABLES = ("groups", "rules", "servers", "addresses", "attachments")
RUNS, RUNS_QUICK = 5, 1
# For the ratio of two models: rounds in which each gets a batch of changes of each kind.
ROUNDS, ROUNDS_QUICK = 7, 2
CHANGES = 150
MEMBER_CHANGES, MEMBER_CHANGES_QUICK = 200, 40
FIRST_PAGE = 100

Found = dict[str, list[float]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--quick", action="store_true", help="fewer runs, and a tenth of the large model: load_10k_s and load_10k_mb"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="secgroups-bench-") as folder:
        report = measure(Path(folder), quick=options.quick, say=(lambda text: None) if options.json else print)
    print(json.dumps(report) if options.json else shown(report))


def measure(folder: Path, *, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Return medians, with the least and the most of each figure."""
    runs = RUNS_QUICK if quick else RUNS
    large, small = (SMALL, estate.Size(servers=1_000, groups=100, rules=1_000)) if quick else (LARGE, SMALL)
    files = {name: folder / name / "secgroups.db" for name in ("large", "small", "site")}
    for name, file in files.items():
        file.parent.mkdir()
        if name == "site":
            estate.fill_site(file)
        else:
            estate.fill(file, large if name == "large" else small)
        say(f"{name}: {file.stat().st_size >> 20} MB")
    found = starts(folder, files["large"], runs, f"load_{large.servers // 1000}k")
    say(f"started: {found}")
    found |= asyncio.run(change_costs(folder, files["small"], files["large"], ROUNDS_QUICK if quick else ROUNDS))
    found |= first_syncs(folder, files["site"], runs)
    found |= asyncio.run(member_changes(folder, files["site"], MEMBER_CHANGES_QUICK if quick else MEMBER_CHANGES))
    return {
        **{name: round(statistics.median(values), 3) for name, values in found.items()},
        "range": {name: [round(min(values), 3), round(max(values), 3)] for name, values in found.items()},
        "conditions": conditions(large, small, runs, quick=quick),
    }


def conditions(large: estate.Size, small: estate.Size, runs: int, *, quick: bool) -> dict[str, Any]:
    """Return what the figures were measured with."""
    return {
        "large": f"{large.servers} servers, {large.groups} groups, {large.rules} rules, {large.projects} projects",
        "small": f"{small.servers} servers, {small.groups} groups, {small.rules} rules, {small.projects} projects",
        "site": f"{estate.SITE_SERVERS} servers, {estate.SITE_GROUPS} groups of {estate.SITE_RULES}, a group of {estate.CROWD}",
        "quick": quick,
        "runs": runs,
        "changes_per_batch": CHANGES,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "store": "SQLite, WAL, synchronous=FULL",
        "yardsticks": "raw_read: sqlite3 fetches the same rows; json: json.loads of the same snapshot",
    }


def controller(folder: Path, file: Path) -> Process:
    """Return a controller of a database file, not started."""
    listen = ["--plaintext", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", str(file.parent), *FLAGS]
    log = folder / f"controller-{file.parent.name}.log"
    return Process(
        name=f"controller-{file.parent.name}",
        arguments=["secgroups.controller", *listen],
        ready_file=folder / f"{file.parent.name}.ready",
        log_file=log,
    )


# A start.


def starts(folder: Path, file: Path, runs: int, name: str) -> Found:
    """Return seconds from the start of a process to its first answers, its peak memory, and what the raw rows take."""
    found: Found = {f"{name}_s": [], f"{name}_mb": [], f"{name}_processor_s": [], f"{name}_over_raw_read": [], "raw_read_s": []}
    for _ in range(runs):
        raw_s = raw_read_s(file)
        forget(file)
        process = controller(folder, file)
        begun = time.perf_counter()
        process.start()
        try:
            asyncio.run(first_answers(process.address))
            started_s = time.perf_counter() - begun
            assert process.popen is not None
            found[f"{name}_mb"].append(peak_mb(process.popen.pid))
            found[f"{name}_processor_s"].append(processor_s(process.popen.pid))
        finally:
            process.stop()
        found["raw_read_s"].append(raw_s)
        found[f"{name}_s"].append(started_s)
        found[f"{name}_over_raw_read"].append(started_s / raw_s)
    return found


async def first_answers(address: str) -> None:
    """Return when the controller says that it serves and has answered a page of servers."""
    async with grpc.aio.insecure_channel(address) as channel:
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        request = server_service_pb2.ListServersRequest(project="project-000", page_size=FIRST_PAGE)
        page = await ServerServiceStub(channel).ListServers(request)
    if health.status != health_pb2.HealthCheckResponse.SERVING or len(page.servers) != FIRST_PAGE:
        raise SystemExit(f"health is {health.status}, the first page has {len(page.servers)} servers")


def raw_read_s(file: Path) -> float:
    """Return how long SQLite takes to give the rows of all objects to Python, the file not being in memory."""
    forget(file)
    begun = time.perf_counter()
    connection = sqlite3.connect(file)
    for table in TABLES:
        connection.execute(f"SELECT * FROM {table}").fetchall()
    connection.close()
    return time.perf_counter() - begun


def forget(file: Path) -> None:
    """Have the system drop what it holds of a file in memory."""
    handle = os.open(file, os.O_RDWR)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has had at one time."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def processor_s(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Changes.


async def change_costs(folder: Path, small: Path, large: Path, rounds: int) -> Found:
    """Return what a change costs in a model of ten times the size, as a ratio, by kind and of all kinds together.

    What is changed is the same in both, as are the agents that it touches: one, connected, that acknowledges at once.
    """
    found: Found = {}
    with ExitStack() as stack:
        processes = [controller(folder, file) for file in (small, large)]
        for process in processes:
            stack.callback(process.stop)
            process.start()
        drivers = [Driver(process.address) for process in processes]
        for driver in drivers:
            await driver.begin()
        for number in range(rounds + 1):
            spent: dict[str, list[float]] = {}
            for kind in drivers[0].kinds():
                taken = [0.0, 0.0]
                # Either goes first by turns: what else the machine does weighs on both alike.
                for model in (0, 1) if number % 2 else (1, 0):
                    popen = processes[model].popen
                    assert popen is not None
                    before = processor_s(popen.pid)
                    await drivers[model].kinds()[kind](CHANGES)
                    taken[model] = (processor_s(popen.pid) - before) / CHANGES * 1e3
                spent[kind] = taken
            # The first round warms up.
            if number:
                note_costs(found, spent)
        for driver in drivers:
            await driver.close()
    return found


def note_costs(found: Found, spent: dict[str, list[float]]) -> None:
    """Add the figures of one round: milliseconds in the small and in the large model, by kind."""
    for kind, (in_small, in_large) in spent.items():
        found.setdefault(f"{kind}_ms", []).append(in_large)
        found.setdefault(f"{kind}_ratio_10x", []).append(in_large / in_small)
    in_small, in_large = (sum(each[at] for each in spent.values()) for at in (0, 1))
    found.setdefault("change_cost_ratio_10x", []).append(in_large / in_small)


# An agent's site.


def first_syncs(folder: Path, file: Path, runs: int) -> Found:
    """Return milliseconds from the hello of an agent that holds nothing to its snapshot being in force, both sides just started."""
    found: Found = {"first_sync_ms": [], "first_sync_json_ms": []}
    for number in range(runs):
        process, agent = controller(folder, file), None
        process.start()
        try:
            agent = site_agent(folder, process, f"first-{number}")
            agent.start()
            done = next(follow(agent.log_file, "ruleset_applied"))
            # The log goes on from run to run, and the yardstick's stream is in it too.
            hello = next(follow(process.log_file, "agent_connected", skip=2 * number))
            found["first_sync_ms"].append((at(done) - at(hello)) * 1e3)
            found["first_sync_json_ms"].append(asyncio.run(json_ms(process.address)))
        finally:
            if agent is not None:
                agent.stop()
            process.stop()
    return found


async def json_ms(address: str) -> float:
    """Return how long the snapshot of the same site takes to be read as JSON."""
    watcher = Watcher(address, estate.SITE_AGENT)
    await watcher.begin()
    text = json.dumps([update_values(message) for message in watcher.snapshot])
    await watcher.close()
    begun = time.perf_counter()
    json.loads(text)
    return (time.perf_counter() - begun) * 1e3


def update_values(message: agent_service_pb2.Update) -> dict[str, Any]:
    """Return an update as JSON values; addresses as text, as a person would write them."""
    return {
        "sets": {each.group_id: [each.ipv4[at : at + 4].hex() for at in range(0, len(each.ipv4), 4)] for each in message.sets},
        "groups": {each.group_id: [[rule.id, str(rule.spec)] for rule in each.rules] for each in message.groups},
        "servers": {each.server: list(each.group_ids) for each in message.servers},
    }


def site_agent(folder: Path, process: Process, name: str) -> Process:
    """Return an agent of the site in a folder of its own, not started."""
    state = folder / name
    state.mkdir()
    own = ["--agent-id", estate.SITE_AGENT, "--state-dir", str(state), "--controller", process.address]
    return Process(
        name=name,
        arguments=["secgroups.agent", *own, "--plaintext", "--listen", "127.0.0.1:0"],
        ready_file=state / "ready",
        log_file=state / "log",
    )


def follow(log_file: Path, event: str, *, skip: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the events of a name as they are logged, but for the first ``skip``. SystemExit if none comes for 20 s."""
    seen = 0
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        lines = [json.loads(line) for line in log_file.read_text().splitlines() if f'"{event}"' in line]
        for line in lines[skip + seen :]:
            seen += 1
            deadline = time.monotonic() + 20
            yield line
        time.sleep(0.01)
    raise SystemExit(f"{log_file} holds no further {event}: {log_file.read_text()[-2000:]}")


def at(logged: dict[str, Any]) -> float:
    """Return when something was logged, in seconds."""
    return datetime.fromisoformat(logged["timestamp"]).timestamp()


async def member_changes(folder: Path, file: Path, changes: int) -> Found:
    """Return what one address that joins or leaves the group of 10,000 costs: bytes to an agent, its time to apply."""
    process = controller(folder, file)
    process.start()
    agent = site_agent(folder, process, "member")
    watcher = Watcher(process.address, estate.WATCHER)
    try:
        agent.start()
        applied = follow(agent.log_file, "ruleset_applied")
        await asyncio.to_thread(next, applied)
        await watcher.begin()
        driver = Driver(process.address)
        in_force_ms = await driver.join_and_leave(estate.SITE_PROJECT, estate.JOINING, "role-000", changes)
        await driver.close()
        sizes = await watcher.sizes(changes)
        times = [await asyncio.to_thread(next, applied) for _ in range(changes)]
    finally:
        await watcher.close()
        agent.stop()
        process.stop()
    return {
        "member_patch_bytes": list(map(float, sizes)),
        "member_apply_ms": [each["apply_us"] / 1e3 for each in times],
        "member_in_force_ms": in_force_ms,
    }


def shown(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = []
    for name, (least, most) in report["range"].items():
        lines.append(f"{name:24} {report[name]:>12,.3f}   ({least:,.3f} to {most:,.3f})")
    lines += [f"{name:24} {value}" for name, value in report["conditions"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
