"""The simulated world of one seed: a controller, agents, the ways between them, clients, faults; and at the end, peace."""

from __future__ import annotations

import asyncio
import hashlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import faults
from checks import Checks
from client import Client
from controller_seat import ControllerSeat
from entropy import LogEar, seed_everything
from fleet import Fleet
from network import Network
from plan import SMALL_LIMITS, WEIGHTS, Plan
from promises import Promises
from streams import Connection
from traffic import Traffic
from virtual_loop import StuckError, VirtualLoop

from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import ruleset_service_pb2 as rulesets

# 2027-01-15 and so many seconds.
EPOCH_NS = 1_800_000_000_000_000_000
# Longer than any wait of the programs: a lost connection is noticed, a superseded agent comes again, and some.
PEACE_S_MAX = 150.0
# A verification that is under way counts as pending: so often is it looked whether one is left over.
LOOKS_MAX = 5
# Tasks of a controller besides its streams, of a stream, and of an agent; and as many timers.
TASKS_CONTROLLER_MAX = 4
TASKS_STREAM_MAX = 4
TASKS_AGENT_MAX = 8

Mutate = Callable[["World", Connection, pb.SubscribeResponse], "Iterable[pb.SubscribeResponse]"]


class FailedError(Exception):
    """A check has failed; ``check`` is its name."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(f"{check}: {message}")
        self.check = check


@contextmanager
def _small_limits(modules: Iterable[str]) -> Iterator[None]:
    """Make the bounds of some modules small for a while."""
    bounds = [
        (import_module(module.partition(":")[0]), name, most) for module in modules for name, most in SMALL_LIMITS[module].items()
    ]
    usual = [getattr(module, name) for module, name, _ in bounds]
    for module, name, most in bounds:
        setattr(module, name, most)
    try:
        yield
    finally:
        for (module, name, _), most in zip(bounds, usual, strict=True):
            setattr(module, name, most)


class World:
    """One run. ``ignored`` are checks that are not made; ``mutate`` may change what the controller says on its way."""

    def __init__(
        self, plan: Plan, folder: Path, *, shown: bool = False, ignored: frozenset[str] = frozenset(), mutate: Mutate | None = None
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.ignored = ignored
        self.random = Random(f"world {plan.seed}")
        self.counts: Counter[str] = Counter()
        self.ear = LogEar(shown)
        self.loop = VirtualLoop(self.random)
        self.mutate = mutate
        self.seat = ControllerSeat(self)
        self.fleet = Fleet(self)
        self.network = Network(self)
        self.checks = Checks(self)
        self.traffic = Traffic(self)
        self.promises = Promises(self)
        # No new faults any more.
        self.peace = False
        self.failure: FailedError | None = None
        # For planted bugs: digest terms of what was left out, by connection; rules that were sent, by group; a store that forgets.
        self.forgotten: dict[int, int] = {}
        self.rules_seen: dict[str, dict[str, pb.PolicyRule]] = {}
        self.loses_commits = False
        self._shown = shown
        self._hash = hashlib.sha256()

    # The run.

    def run(self) -> None:
        """Run the seed. FailedError if a check fails."""
        seed_everything(self.plan.seed)
        self.ear.listen()
        try:
            with _small_limits(self.plan.small_limits):
                self.loop.run(self._main())
        except FailedError:
            pass
        except StuckError as error:
            self.fail("converge", str(error))
        except Exception:
            self.fail("bug", traceback.format_exc())
        finally:
            self._close()
        self.counts.update(self.ear.reasons)
        for problem in (*self.loop.failures, *self.ear.bugs):
            self.fail("bug", problem)
        if self.failure is not None:
            raise self.failure

    @property
    def trace_hash(self) -> str:
        """What happened, in one word: equal for two runs only if they were the same."""
        return self._hash.hexdigest()[:16]

    async def _main(self) -> None:
        self.seat.begin()
        for agent_id in self.plan.agent_ids:
            self.fleet.begin(self.fleet.new_host(agent_id, agent_id))
        clients = [Client(self, number) for number in range(self.plan.clients)]
        until_s = self.loop.time() + self.plan.duration_s
        work = [asyncio.create_task(client.run(until_s)) for client in clients]
        trouble = asyncio.create_task(self._make_trouble(until_s))
        await self._all_of(trouble)
        self._make_peace()
        await self._all_of(*work)
        await self._converge()
        self._check_bounds()

    @staticmethod
    async def _all_of(*tasks: asyncio.Task[Any]) -> None:
        """Wait for tasks; raise what ended one."""
        await asyncio.wait(tasks)
        for task in tasks:
            task.result()

    async def _make_trouble(self, until_s: float) -> None:
        await asyncio.sleep(self.random.random())
        while self.loop.time() < until_s:
            if self.random.random() < 0.3:
                self.seat.take_backup()
            self.fleet.look_at(self.random.choice(self.fleet.hosts))
            if self.plan.faults:
                weights = [WEIGHTS.get(name, 1) for name in self.plan.faults]
                name = self.random.choices(self.plan.faults, weights)[0]
                if faults.begin(self, name):
                    self.note("fault", name)
                    self.count(f"fault {name}")
            await asyncio.sleep(self.random.expovariate(1 / self.plan.fault_pause_s))

    def _make_peace(self) -> None:
        self.note("peace")
        self.peace = True
        self.network.reset_next.clear()
        self.seat.clock_ns = 0
        if self.seat.life is not None:
            self.seat.life.commits_to_fail = 0
            self.seat.life.process.paused = False
            self.seat.life.process.after_steps(1 << 60, lambda: None)
        for host in list(self.fleet.hosts):
            if host.name not in self.plan.agent_ids:
                self.fleet.drop(host)
        for host in self.fleet.hosts:
            self.network.heal(host)
            host.free_disk()
            if host.life is not None:
                host.life.process.paused = False
                host.life.process.after_steps(1 << 60, lambda: None)
        self._let_snapshots_pass()
        for connection in self.network.open_connections():
            connection.reset_after = None

    def _let_snapshots_pass(self) -> None:
        """Do what an operator does about snapshots that are held back: start those agents again without the limit."""
        for host in self.fleet.hosts:
            limited, host.max_removal = host.max_removal < 1, 1.0
            if limited and host.life is not None:
                self.fleet.stop(host.life, 0.1)

    async def _converge(self) -> None:
        began_s = self.loop.time()
        problem = self._unconverged()
        while problem:
            if self.loop.time() - began_s > PEACE_S_MAX:
                self.fail("converge", f"{PEACE_S_MAX:g} s after the last fault: {problem}")
                break
            await asyncio.sleep(0.25)
            problem = self._unconverged()
        self.note("converged")
        if not any(host.life and host.life.rejected for host in self.fleet.hosts):
            await self._check_all_is_in_force()

    async def _check_all_is_in_force(self) -> None:
        """The controller must say so now, of every revision and of every agent."""
        latest = self.seat.branch.latest.revision
        for revision in sorted({1, latest, *(self.random.randint(1, latest) for _ in range(10))} if latest else ()):
            request = rulesets.WaitForRevisionRequest(revision=revision)
            request.timeout.FromMilliseconds(500)
            _, answer = await self.seat.call("WaitForRevision", request, 5.0)
            if not answer.in_force:
                self.fail("converge", f"all agents are there, and WaitForRevision says of {revision}: {answer}")
        problem = "nothing"
        for _ in range(LOOKS_MAX):
            _, listed = await self.seat.call("ListAgents", pb.ListAgentsRequest(), 5.0)
            wrong = [agent for agent in listed.agents if agent.pending_revisions or agent.applied_revision != latest]
            if not wrong:
                return
            problem = str(wrong[0])
            await asyncio.sleep(self.plan.heartbeat_s)
        self.fail("converge", f"all agents are there, and ListAgents says: {problem}")

    def _unconverged(self) -> str:
        """Say what is not yet as it must become; empty if all is."""
        controller, latest = self.seat.life, self.seat.branch.latest
        if controller is None or not controller.serving:
            return "no controller serves"
        for host in self.fleet.hosts:
            life = host.life
            if life is None or not life.is_up or not life.subscription.connected:
                return f"{host.name} is not connected"
            if life.replica.revision != latest.revision or life.branches != [self.seat.branch]:
                return f"{host.name} is at revision {life.replica.revision}, the controller at {latest.revision}"
            expected = self.seat.branch.spanned(latest.revision, host.agent_id, self.checks.still_held(life, latest))
            found = life.objects()
            kept = self.checks.needed_by_last_good(life, life.rejected) - expected.keys()
            for key in sorted(expected.keys() | found.keys()):
                if key not in life.rejected | kept and expected.get(key) != found.get(key):
                    return f"{host.name} holds {key} as {found.get(key)}, should be {expected.get(key)}"
            channel = controller.core.publisher.find_channel(host.agent_id)
            if channel is None or channel.pending_since is not None or channel.applied_revision != latest.revision:
                return f"{host.name} has yet to acknowledge"
        return ""

    def _check_bounds(self) -> None:
        assert self.seat.life is not None
        publisher = self.seat.life.core.publisher
        for agent_id in publisher.agent_ids():
            channel = publisher.find_channel(agent_id)
            if channel is not None and channel.backlog:
                self.fail("bounds", f"{channel.backlog} objects are left over for {agent_id}")
        # Whose other end died behind a partition, the controller can't know yet.
        streams = sum(connection.agent.process.alive for connection in self.seat.life.connections)
        if streams > len(self.fleet.hosts):
            self.fail("bounds", f"{streams} streams for {len(self.fleet.hosts)} agents")
        bounds = [(self.seat.life.process, TASKS_CONTROLLER_MAX + TASKS_STREAM_MAX * streams)]
        bounds += [(host.life.process, TASKS_AGENT_MAX) for host in self.fleet.hosts if host.life is not None]
        for process, most in bounds:
            if len(process.live_tasks) > most:
                self.fail("bounds", f"{process.name} has {len(process.live_tasks)} tasks, the most allowed is {most}")
            if self.loop.timers(process) > most:
                self.fail("bounds", f"{process.name} has {self.loop.timers(process)} timers, the most allowed is {most}")

    def _close(self) -> None:
        for host in self.fleet.hosts:
            if host.life is not None:
                host.life.end()
        if self.seat.life is not None:
            self.seat.life.end()
            self.seat.life.close_files()

    # What is told.

    def note(self, *words: object) -> None:
        """Note what happens, for the hash and for whoever looks on."""
        line = f"{self.loop.time():.6f} {' '.join(map(str, words))}"
        self._hash.update(line.encode())
        if self._shown:
            print(line)

    def count(self, what: str, times: int = 1) -> None:
        """Count what happens, for the summary."""
        if times:
            self.counts[what] += times

    def fail(self, check: str, message: str) -> None:
        """Note that a check has failed; the first one counts."""
        if check not in self.ignored and self.failure is None:
            self.failure = self.loop.halt = FailedError(check, f"at {self.loop.time():.6f} s: {message}")
            self.note("FAILED", self.failure)

    def wall_ns(self, offset_ns: int) -> int:
        """Return the time of day on a machine whose clock is off by ``offset_ns``."""
        return EPOCH_NS + int(self.loop.time() * 1e9) + offset_ns
