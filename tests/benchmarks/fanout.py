"""How quickly a change is in force on a fleet: from the commit to the moment when the agents enforce it.

A controller on a durable store and a fleet of simulated agents (see ``fleet``) in a few processes, a connection for each agent, all
on this machine's cores. Commit is the time that the controller gives to the change before it writes it, so the disk is within every
figure; in force is when an agent has applied it. Yardstick: an empty gRPC server that pushes one message of the same size to as
many streams of the same fleet processes, until the last acknowledgement is back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from secgroups.lab.stack import Process
from secgroups.v1 import (
    agent_service_pb2,
    group_service_pb2,
    rule_service_pb2,
    ruleset_service_pb2,
    server_service_pb2,
    types_pb2,
)
from secgroups.v1.agent_service_pb2_grpc import AgentServiceStub
from secgroups.v1.attachment_service_pb2_grpc import AttachmentServiceStub
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub

PROJECT = "fleet"
DRIVERS = 2
STREAMS_PER_DRIVER_MAX = 1_250
BUCKETS_MS = (1, 2, 3, 4, 5, 7.5, 10, 15, 25, 50, 100, 250)
WAIT_S = 60.0
SEED = 7
GROUP_RULES = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, to see that it runs")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--runs", type=int, default=3, help="runs of each part (default 3)")
    options = parser.parse_args()
    raise_file_limit()
    say: Callable[[str], None] = (lambda text: None) if options.json else print
    size = Size.quick() if options.quick else Size()
    with tempfile.TemporaryDirectory(prefix="secgroups-bench-") as folder:
        report = asyncio.run(measure(Path(folder), size, [options.only] if options.only else list(PARTS), options.runs, say))
    print(json.dumps(report) if options.json else shown(report))


class Size:
    """How much is done."""

    def __init__(
        self, agents: int = 1_000, streams: int = 5_000, lone: int = 200, all_changes: int = 20, storm_s: float = 12.0
    ) -> None:
        self.agents = agents
        self.streams = streams
        self.lone = lone
        self.all_changes = all_changes
        self.storm_s = storm_s
        self.storm_per_s = 200

    @classmethod
    def quick(cls) -> Size:
        return cls(agents=100, streams=500, lone=20, all_changes=5, storm_s=3.0)


def raise_file_limit() -> None:
    """Allow this process, and those that it starts, as many files as the machine lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# Processes.


class Controller:
    """A controller of this bench's own, with what it takes to change things."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        data = folder / "data"
        data.mkdir()
        self._folder = folder
        self._data = data
        self._listen = "127.0.0.1:0"
        self.process = self._process()

    def _process(self) -> Process:
        own = ["--listen", self._listen, "--admin-listen", "127.0.0.1:0", "--data-dir", str(self._data)]
        arguments = ["secgroups.controller", *own, "--log-level", "warning"]
        return Process(name="controller", arguments=arguments, ready_file=self._folder / "ready", log_file=self._folder / "log")

    def start(self) -> None:
        """Start, again at the address of the first time."""
        self.process = self._process()
        self.process.start()
        self._listen = self.process.address

    @property
    def pid(self) -> int:
        assert self.process.popen is not None
        return self.process.popen.pid

    def memory_kb(self) -> int:
        """Return the resident memory in KiB."""
        return int(next(line for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if "VmRSS" in line).split()[1])

    def cpu_s(self) -> float:
        """Return the processor time used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Driver:
    """A process of the fleet."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls) -> Driver:
        script = str(Path(__file__).with_name("fleet.py"))
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(sys.executable, script, stdin=pipe, stdout=pipe, limit=64 << 20))

    async def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Give a command and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process of the fleet ended at {do}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 20)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def fleet(count: int) -> AsyncIterator[list[Driver]]:
    """Run ``count`` processes of the fleet."""
    drivers = [await Driver.start() for _ in range(count)]
    try:
        yield drivers
    finally:
        await asyncio.gather(*(driver.stop() for driver in drivers))


async def ask_all(drivers: Sequence[Driver], do: str, **values: Any) -> list[dict[str, Any]]:
    return list(await asyncio.gather(*(driver.ask(do, **values) for driver in drivers)))


async def connect_all(drivers: Sequence[Driver], address: str, prefix: str, count: int) -> None:
    share = -(-count // len(drivers))
    starts = range(0, count, share)
    await asyncio.gather(
        *(
            driver.ask("connect", address=address, prefix=prefix, first=first, count=min(share, count - first))
            for driver, first in zip(drivers, starts, strict=False)
        )
    )


class Model:
    """What the fleet guards: a server for each agent, all of them in one group, and each of the first ones in one of its own."""

    OWN_GROUPS = 400

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        self._groups = GroupServiceStub(self.channel)
        self._rules = RuleServiceStub(self.channel)
        self._servers = ServerServiceStub(self.channel)
        self._attachments = AttachmentServiceStub(self.channel)
        self._rulesets = RulesetServiceStub(self.channel)
        self._agents = AgentServiceStub(self.channel)
        self.common = ""
        self.own: list[str] = []
        self._port = 0

    async def make(self, agents: int) -> None:
        """Make groups and servers."""
        self.common = await self._group("common")
        for _ in range(GROUP_RULES):
            await self.change(self.common)
        for first in range(0, min(agents, self.OWN_GROUPS), 100):
            numbers = range(first, min(first + 100, agents, self.OWN_GROUPS))
            self.own += await asyncio.gather(*(self._group(f"own-{number}") for number in numbers))
        for first in range(0, agents, 100):
            await asyncio.gather(*(self._server(number) for number in range(first, min(first + 100, agents))))

    async def _group(self, name: str) -> str:
        request = group_service_pb2.CreateGroupRequest(project=PROJECT, name=name)
        return str((await self._groups.CreateGroup(request)).group.id)

    async def _server(self, number: int) -> None:
        groups = [self.common, *self.own[number : number + 1]]
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        await self._servers.CreateServer(
            server_service_pb2.CreateServerRequest(
                project=PROJECT, id=f"server-{number}", addresses=[address], agent_id=f"agent-{number}", group_ids=groups
            )
        )

    async def change(self, group_id: str) -> int:
        """Add a rule to a group; return the revision."""
        revision, _ = await self.add(group_id)
        return revision

    async def add(self, group_id: str) -> tuple[int, str]:
        """Add a rule that no other call adds; return the revision and the rule's id."""
        self._port = self._port % 60_000 + 1
        spec = types_pb2.RuleSpec(
            direction=types_pb2.DIRECTION_INGRESS,
            protocol=types_pb2.PROTOCOL_TCP,
            ports=types_pb2.PortRange(first=self._port, last=self._port),
            cidr="203.0.113.0/24",
        )
        made = await self._rules.CreateRule(rule_service_pb2.CreateRuleRequest(project=PROJECT, group_id=group_id, rule=spec))
        return made.revision, made.rule.id

    async def drop(self, rule_id: str) -> int:
        """Delete a rule; return the revision."""
        answer = await self._rules.DeleteRule(rule_service_pb2.DeleteRuleRequest(project=PROJECT, id=rule_id))
        return int(answer.revision)

    async def in_force_ms(self, revision: int) -> float:
        """Wait until the controller knows a revision in force; return what it says that took."""
        request = ruleset_service_pb2.WaitForRevisionRequest(revision=revision)
        request.timeout.FromSeconds(int(WAIT_S))
        answer = await self._rulesets.WaitForRevision(request)
        if not answer.in_force:
            raise SystemExit(f"revision {revision} is not in force: {answer.lagging[:3]}")
        return answer.commit_to_in_force.ToMicroseconds() / 1e3

    async def read_ms(self) -> float:
        """Return how long a small read takes now."""
        started_ns = time.perf_counter_ns()
        await self._groups.GetGroup(group_service_pb2.GetGroupRequest(project=PROJECT, id=self.common))
        return (time.perf_counter_ns() - started_ns) / 1e6

    async def agents_behind(self) -> int:
        """Return how many agents lack a revision."""
        behind, token = 0, ""
        while True:
            request = agent_service_pb2.ListAgentsRequest(page_size=1_000, page_token=token)
            page = await self._agents.ListAgents(request)
            behind += sum(agent.pending_revisions > 0 for agent in page.agents)
            token = page.next_page_token
            if not token:
                return behind


@asynccontextmanager
async def site(folder: Path, agents: int, drivers: int = DRIVERS) -> AsyncIterator[tuple[Controller, Model, list[Driver]]]:
    """Run a controller whose model ``agents`` agents guard, all of them in sync."""
    controller = Controller(folder)
    controller.start()
    try:
        model = Model(controller.process.address)
        await model.make(agents)
        async with fleet(drivers) as processes:
            await connect_all(processes, controller.process.address, "agent", agents)
            yield controller, model, processes
        await model.channel.close()
    finally:
        controller.process.stop()


# Parts. Each returns its figures of one run.


async def one_agent(folder: Path, size: Size) -> dict[str, Any]:
    """Changes that touch one agent of all, one after another, with pauses in which the controller rests."""
    chance = random.Random(SEED)
    told_ms: list[float] = []
    async with site(folder, size.agents) as (_, model, drivers):
        await ask_all(drivers, "expect", revision=1 << 60)
        for _ in range(size.lone):
            told_ms.append(await model.in_force_ms(await model.change(chance.choice(model.own))))
            await asyncio.sleep(chance.uniform(0.005, 0.02))
        seen = await ask_all(drivers, "seen")
    delays_ms = sorted(delay_us / 1e3 for each in seen for delay_us in each["delays_us"])
    if len(delays_ms) != size.lone:
        raise SystemExit(f"{len(delays_ms)} updates came for {size.lone} changes")
    return {
        "one_agent_p50_ms": quantile(delays_ms, 0.50),
        "one_agent_p99_ms": quantile(delays_ms, 0.99),
        "one_agent_acknowledged_p50_ms": quantile(sorted(told_ms), 0.50),
        "one_agent_acknowledged_p99_ms": quantile(sorted(told_ms), 0.99),
        "histogram_ms": histogram(delays_ms),
    }


async def all_agents(folder: Path, size: Size) -> dict[str, Any]:
    """Changes that touch every agent, one after another; and what the controller's processor spends on one."""
    last_ms: list[float] = []
    acknowledged_ms: list[float] = []
    async with site(folder, size.agents) as (controller, model, drivers):
        used_s = controller.cpu_s()
        for _ in range(size.all_changes):
            revision = await model.change(model.common)
            acknowledged_ms.append(await model.in_force_ms(revision))
            seen = await ask_all(drivers, "seen")
            delays = [delay_us / 1e3 for each in seen for delay_us in each["delays_us"]]
            last_ms.append(max(delays[-size.agents :]) if delays else 0.0)
            await ask_all(drivers, "expect", revision=1 << 60)
            await asyncio.sleep(0.05)
        used_s = controller.cpu_s() - used_s
    return {
        "all_1000_last_ms": statistics.median(last_ms[1:]),
        "all_1000_acknowledged_ms": statistics.median(acknowledged_ms[1:]),
        "all_1000_controller_cpu_ms": used_s * 1e3 / size.all_changes,
    }


async def storm(folder: Path, size: Size) -> dict[str, Any]:
    """Changes at a constant rate, each touching every agent: how old news are when in force, and what callers of the API feel."""
    async with site(folder, size.agents) as (controller, model, drivers):
        await ask_all(drivers, "expect", revision=1 << 60)
        # As many rules come as go, so that the group stays as it is.
        rules: list[str] = []
        reads_ms: list[float] = []
        memory_kb: list[int] = []
        calls: set[asyncio.Task[None]] = set()
        changes_ms: list[float] = []

        async def change(number: int) -> None:
            started_ns = time.perf_counter_ns()
            if number % 2 and rules:
                await model.drop(rules.pop(0))
            else:
                rules.append((await model.add(model.common))[1])
            changes_ms.append((time.perf_counter_ns() - started_ns) / 1e6)

        count = int(size.storm_per_s * size.storm_s)
        started_s = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, started_s + number / size.storm_per_s - time.monotonic()))
            calls.add(task := asyncio.create_task(change(number)))
            task.add_done_callback(calls.discard)
            if number % size.storm_per_s == 0:
                reads_ms.append(await model.read_ms())
                memory_kb.append(controller.memory_kb())
        await asyncio.gather(*calls)
        rate = count / (time.monotonic() - started_s)
        revision, _ = await model.add(model.common)
        drained_ms = await model.in_force_ms(revision)
        seen = await ask_all(drivers, "seen")
        behind = await model.agents_behind()
    delays_ms = sorted(delay_us / 1e3 for each in seen for delay_us in each["delays_us"])
    failures = [failure for each in seen for failure in each["failures"]]
    if failures or behind:
        raise SystemExit(f"{len(failures)} streams failed ({failures[:3]}), {behind} agents are behind after the storm")
    return {
        "storm_lag_ms": delays_ms[-1],
        "storm_lag_p50_ms": quantile(delays_ms, 0.50),
        "storm_lag_p99_ms": quantile(delays_ms, 0.99),
        "storm_changes_per_s": rate,
        "storm_changes_per_update": count * size.agents / len(delays_ms),
        "storm_drained_ms": drained_ms,
        "storm_change_call_p99_ms": quantile(sorted(changes_ms), 0.99),
        "storm_read_max_ms": max(reads_ms),
        "storm_memory_growth_mb": (memory_kb[-1] - memory_kb[1]) / 1024,
    }


async def restart(folder: Path, size: Size) -> dict[str, Any]:
    """The controller goes and comes back under all agents: once asked to, once killed."""
    figures: dict[str, Any] = {}
    async with site(folder, size.agents) as (controller, model, drivers):
        for name in ("stopped", "killed"):
            await ask_all(drivers, "expect", revision=1 << 60)
            started_s = time.time()
            controller.process.stop() if name == "stopped" else controller.process.kill()
            await ask_all(drivers, "lost", timeout_s=WAIT_S)
            controller.start()
            ready_s = time.time()
            answers = await ask_all(drivers, "synced", timeout_s=WAIT_S)
            resumed_s = max(answer["at_us"] for answer in answers) / 1e6
            seen = await ask_all(drivers, "seen")
            late = [reason for each in seen for at_s, reason in each["failures"] if at_s > ready_s + 0.05]
            figures[f"restart_{name}_resumed_s"] = resumed_s - started_s
            figures[f"restart_{name}_after_ready_s"] = resumed_s - ready_s
            figures[f"restart_{name}_failed_streams"] = len(late)
            figures[f"restart_{name}_objects_sent"] = sum(answer["objects"] for answer in answers)
            modes: dict[str, int] = {}
            for answer in answers:
                for mode, count in answer["modes"].items():
                    modes[mode] = modes.get(mode, 0) + count
            figures[f"restart_{name}_modes"] = modes
        await model.in_force_ms(await model.change(model.common))
    figures["restart_all_resumed_s"] = max(figures["restart_stopped_resumed_s"], figures["restart_killed_resumed_s"])
    return figures


async def many_streams(folder: Path, size: Size) -> dict[str, Any]:
    """Thousands of streams, each with a server to guard: what one costs the controller, and how long a change for all takes."""
    controller = Controller(folder)
    controller.start()
    try:
        model = Model(controller.process.address)
        await model.make(size.streams)
        before_kb = controller.memory_kb()
        async with fleet(-(-size.streams // STREAMS_PER_DRIVER_MAX)) as drivers:
            started_s = time.monotonic()
            await connect_all(drivers, controller.process.address, "agent", size.streams)
            connected_s = time.monotonic() - started_s
            held_kb = controller.memory_kb()
            taken_ms = await model.in_force_ms(await model.change(model.common))
            after_kb = controller.memory_kb()
            failures = [failure for each in await ask_all(drivers, "seen") for failure in each["failures"]]
        await model.channel.close()
    finally:
        controller.process.stop()
    return {
        "streams_5000_kb_each": (max(held_kb, after_kb) - before_kb) / size.streams,
        "streams_5000_connected_s": connected_s,
        "streams_5000_change_acknowledged_ms": taken_ms,
        "streams_5000_failed": len(failures),
    }


async def bare(folder: Path, size: Size) -> dict[str, Any]:
    """The yardstick: an empty server pushes one message to all streams of the fleet and waits for every acknowledgement."""
    process = Process(
        name="bare",
        arguments=["bare_push"],
        ready_file=folder.with_suffix(".ready"),
        log_file=folder.with_suffix(".log"),
    )
    environment = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), environment]))
    try:
        process.start()
    finally:
        os.environ["PYTHONPATH"] = environment
    try:
        async with fleet(DRIVERS) as drivers:
            await connect_all(drivers, process.address, "agent", size.agents)
            channel = grpc.aio.insecure_channel(process.address)
            push = channel.unary_unary("/bare/Push")
            taken_ms = [float((await push(b"")).decode()) for _ in range(size.all_changes)]
            await channel.close()
    finally:
        process.stop()
    return {"bare_push_ms": statistics.median(taken_ms[1:])}


PARTS: dict[str, Callable[[Path, Size], Any]] = {
    "bare": bare,
    "one_agent": one_agent,
    "all_agents": all_agents,
    "storm": storm,
    "restart": restart,
    "many_streams": many_streams,
}


async def measure(folder: Path, size: Size, parts: Sequence[str], runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return medians over all runs, with the least and the most of each figure."""
    report: dict[str, Any] = {}
    ranges: dict[str, list[float]] = {}
    # Round by round, so that each part's runs are spread over the whole time.
    results: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    for number in range(runs):
        for part in parts:
            result = await PARTS[part](folder / f"{part}-{number}", size)
            results[part].append(result)
            say(f"run {number + 1}, {part}: " + ", ".join(f"{k} {_text(v)}" for k, v in result.items() if k != "histogram_ms"))
    for each in results.values():
        for name in each[0]:
            values = [run[name] for run in each]
            if name == "histogram_ms":
                report[name] = {bound: sum(value[bound] for value in values) for bound in values[0]}
            elif isinstance(values[0], dict):
                report[name] = values[-1]
            else:
                report[name] = round(statistics.median(values), 3)
                ranges[name] = [round(min(values), 3), round(max(values), 3)]
    return {**report, "range": ranges, "conditions": conditions(size, runs)}


def conditions(size: Size, runs: int) -> dict[str, Any]:
    """Return what the figures were measured with."""
    return {
        "runs": runs,
        "agents": size.agents,
        "streams": size.streams,
        "fleet_processes": DRIVERS,
        "rules_of_the_common_group": GROUP_RULES,
        "storm_changes_per_s_asked": size.storm_per_s,
        "storm_s": size.storm_s,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "store": "SQLite, WAL, synchronous=FULL",
        "yardstick": "bare_push_ms: an empty grpc.aio server, 4 KiB to each stream of the same fleet, to the last ack",
    }


def quantile(ascending: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of all are at or below."""
    return ascending[min(len(ascending) - 1, max(0, -(-int(len(ascending) * share * 1000) // 1000) - 1))]


def histogram(values_ms: Sequence[float]) -> dict[str, int]:
    """Return how many values are at or below each bound and above the one before."""
    counts = {f"<= {bound:g}": 0 for bound in BUCKETS_MS} | {f"> {BUCKETS_MS[-1]:g}": 0}
    for value in values_ms:
        bound = next((f"<= {bound:g}" for bound in BUCKETS_MS if value <= bound), f"> {BUCKETS_MS[-1]:g}")
        counts[bound] += 1
    return counts


def shown(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = []
    for name, (least, most) in report["range"].items():
        lines.append(f"{name:36} {report[name]:>12,.3f}   ({least:,.3f} to {most:,.3f})")
    lines += [f"{name:36} {report[name]}" for name in report if name.endswith("_modes")]
    lines += [
        f"{bound:>10} ms {count:>7} {'#' * round(60 * count / sum(report['histogram_ms'].values()))}"
        for bound, count in report.get("histogram_ms", {}).items()
    ]
    lines += [f"{name:36} {value}" for name, value in report["conditions"].items()]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
