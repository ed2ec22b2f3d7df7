"""How fast a change reaches the agents: a real controller process, a durable store, and thousands of agents in a few processes.

The agents are simulated (``_fleet``): they enforce nothing, but each has its own TCP connection and stream, parses, keeps versions
and digests, checks them, and acknowledges. They speak HTTP/2 by hand, which costs a fraction of a gRPC client, so what is measured
is the controller. Times run from the commit time that the controller stamps in the transaction, before it is on disk, to the
moment the agent has applied it, by the clock of the one machine. The yardstick is an empty grpc.aio server that pushes one message
to 1,000 streams of the same agents and awaits 1,000 acknowledgements.

Every agent guards one server, which is in a group of its own and in one that all share and that names the members of a third.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc

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

PROJECT = "fanout"
AGENTS = 1_000
DRIVERS = 2
STREAMS = 5_000
ONE_AGENT_CHANGES = 400
ALL_CHANGES = 15
STORM_PER_S = 200
STORM_S = 12.0
PUSHES = 15
RESTARTS = 3
SETTLE_TIMEOUT_S = 60.0
SEED = 7
BUCKETS_MS = (1, 2, 3, 4, 5, 7.5, 10, 15, 25, 50, 100, 150, 250, 500, 1000)

HERE = Path(__file__).parent


class Fleet:
    """The driver processes."""

    def __init__(self, address: str, count: int) -> None:
        bounds = [count * number // DRIVERS for number in range(DRIVERS + 1)]
        self.count = count
        self._drivers = [
            subprocess.Popen(
                [sys.executable, str(HERE / "_fleet.py"), address, str(first), str(until)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for first, until in pairwise(bounds)
        ]

    def ask(self, command: str) -> list[dict[str, Any]]:
        """Return every driver's answer. SystemExit if an agent was told what can't be."""
        for driver in self._drivers:
            assert driver.stdin is not None
            driver.stdin.write(command + "\n")
            driver.stdin.flush()
        answers = []
        for driver in self._drivers:
            assert driver.stdout is not None
            answers.append(json.loads(driver.stdout.readline()))
        for answer in answers:
            if answer["failures"]:
                raise SystemExit(f"the protocol was broken: {answer['failures']}")
        return answers

    async def until(self, what: str, holds: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Wait for a condition of the agents. SystemExit if it does not come."""
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        while not holds(answers := self.ask("status")):
            if time.monotonic() > deadline_s:
                raise SystemExit(f"{what}: not within {SETTLE_TIMEOUT_S:.0f} s: {answers}")
            await asyncio.sleep(0.02)

    async def until_synced(self) -> None:
        await self.until("all in step", lambda answers: sum(each["synced"] for each in answers) == self.count)

    async def until_revision(self, revision: int) -> None:
        await self.until("all at a revision", lambda answers: min(each["least_revision"] for each in answers) >= revision)

    def take(self) -> list[tuple[str, int, int]]:
        """Return, once, what was applied: agent, revision, microseconds since the oldest commit in it."""
        return [tuple(each) for answer in self.ask("take") for each in answer["applied"]]

    def stop(self) -> None:
        for driver in self._drivers:
            assert driver.stdin is not None
            driver.stdin.close()
        for driver in self._drivers:
            driver.wait()
            assert driver.stdout is not None
            driver.stdout.close()


class Operator:
    """Whoever changes things, with one connection."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        self.groups = GroupServiceStub(self.channel)
        self.rules = RuleServiceStub(self.channel)
        self.servers = ServerServiceStub(self.channel)
        self.rulesets = RulesetServiceStub(self.channel)
        self.agents = AgentServiceStub(self.channel)
        self.own: list[str] = []
        self.shared = ""
        self.members = ""

    async def load(self, agents: int, servers: int) -> None:
        """Make ``servers``, one for each agent; only the first ``agents`` are in the shared group."""
        names = ["shared", "members", *(f"own-{number}" for number in range(agents))]
        made = await in_turns(
            [partial(self.groups.CreateGroup, groups_pb.CreateGroupRequest(project=PROJECT, name=name)) for name in names]
        )
        self.shared, self.members, *self.own = [answer.group.id for answer in made]
        await self.change_shared(0)
        await in_turns([self._create_server(number, agents) for number in range(servers)])
        request = servers_pb.CreateServerRequest(project=PROJECT, id="member", addresses=["10.255.0.1"], group_ids=[self.members])
        await self.servers.CreateServer(request)

    def _create_server(self, number: int, agents: int) -> Any:
        groups = [self.own[number], self.shared] if number < agents else []
        request = servers_pb.CreateServerRequest(
            project=PROJECT,
            id=f"s{number}",
            addresses=[f"10.{number >> 8}.{number & 255}.1"],
            agent_id=f"agent-{number}",
            group_ids=groups,
        )
        return partial(self.servers.CreateServer, request)

    async def change_shared(self, number: int) -> int:
        """Make one change that touches every agent: by turns the rules of their group and an address of their remote."""
        if number % 2:
            request = servers_pb.UpdateServerRequest(
                project=PROJECT, id="member", addresses=[f"10.254.{number >> 8 & 255}.{number & 255}"]
            )
            request.update_mask.paths.append("addresses")
            return int((await self.servers.UpdateServer(request)).revision)
        rules = [_tcp(port) for port in (*range(1, 9), 1_000 + number)]
        remote = types.RuleSpec(direction=types.DIRECTION_INGRESS, protocol=types.PROTOCOL_TCP, group_id=self.members)
        replaced = rules_pb.ReplaceRulesRequest(project=PROJECT, group_id=self.shared, rules=[*rules, remote])
        return int((await self.rules.ReplaceRules(replaced)).revision)

    async def change_own(self, number: int, port: int) -> int:
        """Make one change that touches one agent: another rule in its own group."""
        replaced = rules_pb.ReplaceRulesRequest(project=PROJECT, group_id=self.own[number], rules=[_tcp(port)])
        return int((await self.rules.ReplaceRules(replaced)).revision)

    async def wait(self, revision: int) -> float:
        """Wait until a revision is in force; return the milliseconds that the controller says it took."""
        answer = await self.rulesets.WaitForRevision(rulesets_pb.WaitForRevisionRequest(revision=revision))
        if not answer.in_force:
            raise SystemExit(f"revision {revision} is not in force on {len(answer.lagging)} agents")
        return float(answer.commit_to_in_force.ToNanoseconds() / 1e6)

    async def close(self) -> None:
        await self.channel.close()


def _tcp(port: int) -> types.RuleSpec:
    return types.RuleSpec(
        direction=types.DIRECTION_INGRESS,
        protocol=types.PROTOCOL_TCP,
        ports=types.PortRange(first=port),
        anywhere=types.Anywhere(),
    )


async def in_turns(calls: Sequence[Any], at_once: int = 50) -> list[Any]:
    """Await calls, a bounded number of them at one time; return their answers in order."""
    room = asyncio.Semaphore(at_once)

    async def one(call: Callable[[], Any]) -> Any:
        async with room:
            return await call()

    return list(await asyncio.gather(*(one(call) for call in calls)))


class Site:
    """A controller process on a fresh database, its operator and its agents."""

    def __init__(self, folder: Path, agents: int, servers: int, *flags: str) -> None:
        folder.mkdir()
        self._agents, self._servers = agents, servers
        self.controller = Process(
            name="controller",
            arguments=[
                *("secgroups.controller", "--plaintext", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--create"),
                *("--data-dir", str(folder / "data"), "--groups-per-project", str(agents + 10), "--log-level", "info"),
                *flags,
            ],
            ready_file=folder / "ready",
            log_file=folder / "log",
        )
        self.controller.start()
        # It comes back where it was.
        self.controller.arguments[3] = self.controller.address
        self.operator = Operator(self.controller.address)
        self.fleet: Fleet | None = None

    async def connect(self) -> Fleet:
        """Load the model and bring all agents in step."""
        await self.operator.load(self._agents, self._servers)
        self.fleet = Fleet(self.controller.address, self._servers)
        self.loaded_rss_kb = self.rss_kb()
        self.fleet.ask("connect")
        await self.fleet.until_synced()
        return self.fleet

    def rss_kb(self) -> int:
        """Return the resident memory of the controller."""
        assert self.controller.popen is not None
        status = Path(f"/proc/{self.controller.popen.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    def cpu_s(self) -> float:
        """Return the processor time that the controller has used."""
        assert self.controller.popen is not None
        fields = Path(f"/proc/{self.controller.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def stop(self) -> None:
        if self.fleet is not None:
            self.fleet.stop()
        await self.operator.close()
        self.controller.stop()


async def one_agent(site: Site, fleet: Fleet, changes: int) -> dict[str, Any]:
    """Changes that touch one agent each, one after another."""
    chance = random.Random(SEED)
    fleet.take()
    told_ms = []
    for number in range(changes):
        revision = await site.operator.change_own(chance.randrange(AGENTS), 10_000 + number)
        told_ms.append(await site.operator.wait(revision))
    seen_ms = [delay_us / 1e3 for _, _, delay_us in fleet.take()]
    if len(seen_ms) != changes:
        raise SystemExit(f"{changes} changes for one agent each were applied {len(seen_ms)} times")
    seen, told = statistics.quantiles(seen_ms, n=100), statistics.quantiles(told_ms, n=100)
    return {
        "one_agent_p50_ms": seen[49],
        "one_agent_p99_ms": seen[98],
        "one_agent_told_p50_ms": told[49],
        "one_agent_told_p99_ms": told[98],
        "one_agent_histogram": histogram(seen_ms),
    }


async def all_agents(site: Site, fleet: Fleet, changes: int) -> dict[str, Any]:
    """Changes that touch every agent, each when the last one is in force."""
    last_ms, told_ms, all_ms = [], [], []
    for number in range(changes):
        fleet.take()
        revision = await site.operator.change_shared(number + 2)
        told_ms.append(await site.operator.wait(revision))
        await fleet.until_revision(revision)
        delays_ms = [delay_us / 1e3 for _, _, delay_us in fleet.take()]
        last_ms.append(max(delays_ms))
        all_ms += delays_ms
        await asyncio.sleep(0.05)
    return {
        "all_1000_last_ms": statistics.median(last_ms),
        "all_1000_last_range_ms": [min(last_ms), max(last_ms)],
        "all_1000_told_ms": statistics.median(told_ms),
        "all_1000_histogram": histogram(all_ms),
    }


async def storm(site: Site, fleet: Fleet, seconds: float) -> dict[str, Any]:
    """Changes at a fixed rate that touch every agent each, while somebody else reads."""
    fleet.take()
    rss_kb, cpu_s = site.rss_kb(), site.cpu_s()
    reads_ms: list[float] = []
    changes_ms: list[float] = []
    pending: list[asyncio.Task[int]] = []
    stopped = False

    async def read() -> None:
        while not stopped:
            begun_s = time.perf_counter()
            await site.operator.agents.GetAgent(agents_pb.GetAgentRequest(id="agent-0"))
            reads_ms.append((time.perf_counter() - begun_s) * 1e3)
            await asyncio.sleep(0.02)

    async def change(number: int) -> int:
        """Return the revision, 0 if the controller had no room for the call."""
        begun_s = time.perf_counter()
        try:
            revision = await site.operator.change_shared(number)
        except grpc.aio.AioRpcError:
            return 0
        changes_ms.append((time.perf_counter() - begun_s) * 1e3)
        return revision

    reading = asyncio.create_task(read())
    begun_s = time.perf_counter()
    total = int(seconds * STORM_PER_S)
    for number in range(total):
        await asyncio.sleep(max(0.0, begun_s + number / STORM_PER_S - time.perf_counter()))
        pending.append(asyncio.create_task(change(100 + number)))
    revisions = await asyncio.gather(*pending)
    revision = max(revisions)
    changed_s = time.perf_counter() - begun_s
    await fleet.until_revision(revision)
    drained_s = time.perf_counter() - begun_s - changed_s
    stopped = True
    await reading
    lag_ms = [delay_us / 1e3 for _, _, delay_us in fleet.take()]
    hundredths = statistics.quantiles(lag_ms, n=100)
    return {
        "storm_lag_ms": hundredths[98],
        "storm_lag_p50_ms": hundredths[49],
        "storm_lag_max_ms": max(lag_ms),
        "storm_changes_per_s": sum(map(bool, revisions)) / changed_s,
        "storm_changes_refused": revisions.count(0),
        "storm_change_p50_ms": statistics.median(changes_ms),
        "storm_change_p99_ms": statistics.quantiles(changes_ms, n=100)[98],
        "storm_read_p50_ms": statistics.median(reads_ms),
        "storm_read_p99_ms": statistics.quantiles(reads_ms, n=100)[98],
        "storm_updates_per_agent_s": len(lag_ms) / AGENTS / changed_s,
        "storm_drained_s": drained_s,
        "storm_cpu_share": (site.cpu_s() - cpu_s) / (changed_s + drained_s),
        "storm_rss_mb": [rss_kb / 1024, site.rss_kb() / 1024],
        "storm_backlog": await backlog(site),
    }


async def backlog(site: Site) -> list[int]:
    """Return, of all agents, how many revisions they have not in force: the most after the storm, which must be none."""
    await site.operator.wait((await site.operator.agents.ListAgents(agents_pb.ListAgentsRequest())).revision)
    token, most = "", 0
    while True:
        page = await site.operator.agents.ListAgents(agents_pb.ListAgentsRequest(page_size=1000, page_token=token))
        most = max([most, *(agent.pending_revisions for agent in page.agents if agent.connected)])
        if not (token := page.next_page_token):
            return [most]


async def restart(site: Site, fleet: Fleet, number: int) -> dict[str, Any]:
    """Stop the controller, start it again where it was, and wait for all agents."""
    assert site.controller.popen is not None
    fleet.ask("forget")
    begun_s = time.perf_counter()
    site.controller.popen.send_signal(number)
    await asyncio.to_thread(site.controller.popen.wait)
    stopped_s = time.perf_counter()
    await asyncio.to_thread(site.controller.start)
    ready_s = time.perf_counter()
    await fleet.until_synced()
    resumed_s = time.perf_counter()
    answers = fleet.ask("status")
    ends = sum(count for answer in answers for count in answer["ends"].values())
    modes = {name: sum(answer["modes"][name] for answer in answers) for name in answers[0]["modes"]}
    return {
        "resumed_s": resumed_s - begun_s,
        "stop_s": stopped_s - begun_s,
        "start_s": ready_s - stopped_s,
        "streams_failed_beyond": ends - fleet.count,
        "modes": {name: count for name, count in modes.items() if count},
    }


async def streams(folder: Path, count: int) -> dict[str, Any]:
    """Hold many streams; return what each costs the controller."""
    site = Site(folder, 0, count)
    try:
        fleet = await site.connect()
        await asyncio.sleep(12)  # A heartbeat and the reports of all.
        fleet.ask("status")
        return {
            "streams_5000_kb_each": (site.rss_kb() - site.loaded_rss_kb) / count,
            "streams_held": sum(each["synced"] for each in fleet.ask("status")),
        }
    finally:
        await site.stop()


@contextmanager
def bare_server() -> Iterator[subprocess.Popen[str]]:
    """Run the yardstick's server."""
    command = [sys.executable, str(HERE / "_bare.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        try:
            yield process
        finally:
            process.stdin.close()


async def bare_push(pushes: int) -> dict[str, Any]:
    """The yardstick."""
    with bare_server() as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(command: str) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(command + "\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        fleet = Fleet(process.stdout.readline().strip(), AGENTS)
        try:
            fleet.ask("connect")
            await fleet.until_synced()
            while ask("count") < AGENTS:
                await asyncio.sleep(0.05)
            taken_ms = [ask("push") for _ in range(pushes)]
        finally:
            fleet.stop()
    return {"bare_push_ms": statistics.median(taken_ms), "bare_push_range_ms": [min(taken_ms), max(taken_ms)]}


def histogram(delays_ms: Sequence[float]) -> dict[str, int]:
    """Count delays by bucket."""
    counts = dict.fromkeys([*(f"<= {bound} ms" for bound in BUCKETS_MS), f"> {BUCKETS_MS[-1]} ms"], 0)
    for delay_ms in delays_ms:
        bound = next((bound for bound in BUCKETS_MS if delay_ms <= bound), None)
        counts[f"<= {bound} ms" if bound else f"> {BUCKETS_MS[-1]} ms"] += 1
    return {bucket: count for bucket, count in counts.items() if count}


async def measure(folder: Path, only: set[str], *, quick: bool) -> dict[str, Any]:
    """Return every figure."""
    share = 4 if quick else 1
    found: dict[str, Any] = {}
    if "bare" in only:
        found |= await bare_push(PUSHES // share)
    if only & {"one", "all", "storm", "restart"}:
        site = Site(folder / "site", AGENTS, AGENTS)
        try:
            fleet = await site.connect()
            if "one" in only:
                found |= await one_agent(site, fleet, ONE_AGENT_CHANGES // share)
            if "all" in only:
                found |= await all_agents(site, fleet, ALL_CHANGES // share)
            if "storm" in only:
                found |= await storm(site, fleet, STORM_S / share)
            if "restart" in only:
                found |= await restarts(site, fleet, 1 if quick else RESTARTS)
        finally:
            await site.stop()
    if "streams" in only:
        found |= await streams(folder / "many", STREAMS // share)
    return found


async def restarts(site: Site, fleet: Fleet, runs: int) -> dict[str, Any]:
    """Restart both ways, several times."""
    found: dict[str, Any] = {}
    for name, number in (("term", signal.SIGTERM), ("kill", signal.SIGKILL)):
        taken = [await restart(site, fleet, number) for _ in range(runs)]
        found[f"restart_{name}_resumed_s"] = statistics.median(each["resumed_s"] for each in taken)
        found[f"restart_{name}_runs"] = taken
    found["restart_all_resumed_s"] = max(found["restart_term_resumed_s"], found["restart_kill_resumed_s"])
    return found


def conditions() -> dict[str, Any]:
    """Return what the figures were measured with."""
    return {
        "agents": AGENTS,
        "drivers": f"{DRIVERS} processes (SCHED_BATCH), a TCP connection and a stream for each agent",
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "store": "SQLite, WAL, synchronous=FULL",
        "yardstick": "an empty grpc.aio server, one message to 1,000 streams, first write to last acknowledgement",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="a quarter of everything")
    parts = ("bare", "one", "all", "storm", "restart", "streams")
    parser.add_argument("--only", default=",".join(parts), help="some of " + ",".join(parts))
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="secgroups-bench-") as folder:
        found = asyncio.run(measure(Path(folder), set(options.only.split(",")), quick=options.quick))
    report = {name: rounded(value) for name, value in found.items()} | {"conditions": conditions()}
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))


def rounded(value: Any) -> Any:
    """Return a figure, or a list or dict of them, to three digits after the point."""
    match value:
        case float():
            return round(value, 3)
        case list():
            return [rounded(each) for each in value]
        case dict():
            return {name: rounded(each) for name, each in value.items()}
    return value


if __name__ == "__main__":
    main()
