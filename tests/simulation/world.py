"""The simulated world of one seed: a controller, agents, the ways between them, clients, faults; and at the end, peace."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import faults
from agent_life import AgentLife, Host
from checks import STRANGE_PROTOCOL, Checks
from client import Client, LostError
from controller_life import ControllerLife, RefusalError
from entropy import LogEar, seed_everything
from network import Connection, Link
from plan import WEIGHTS, Plan
from truth import Branch, State
from virtual_loop import StuckError, VirtualLoop

from secgroups.controller.store.sqlite import SqliteStore
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import ruleset_service_pb2 as rulesets

# 2027-01-15 and so many seconds.
EPOCH_NS = 1_800_000_000_000_000_000
# Longer than any wait of the programs: a lost connection is noticed, a superseded agent comes again, and some.
PEACE_S_MAX = 150.0
STEPS_MAX = 3_000_000
# Tasks of a controller besides its streams, of a stream, and of an agent.
TASKS_CONTROLLER_MAX = 4
TASKS_STREAM_MAX = 4
TASKS_AGENT_MAX = 8

Mutate = Callable[["World", Connection, pb.SubscribeResponse], "Iterable[pb.SubscribeResponse]"]
_UNKNOWN_FIELD = b"\xf8\x3f\x01"  # Field 1023, varint 1: one that no program of today knows.


class FailedError(Exception):
    """A check has failed; ``check`` is its name."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(f"{check}: {message}")
        self.check = check


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
        self.branch = Branch(0, [State()])
        self.controller: ControllerLife | None = None
        self.controller_clock_ns = 0
        self.hosts: list[Host] = []
        self.links: dict[str, Link] = {}
        self.lives_by_boot: dict[str, AgentLife] = {}
        self.reset_next: dict[str, int] = {}
        self.checks = Checks(self)
        self.failure: FailedError | None = None
        # For planted bugs: digest terms of what was left out, by connection; rules that were sent, by group; a store that forgets.
        self.forgotten: dict[int, int] = {}
        self.rules_seen: dict[str, dict[str, pb.PolicyRule]] = {}
        self.loses_commits = False
        self._branches = [self.branch]
        self._backup: tuple[Path, Branch, int] | None = None
        self._shown = shown
        self._mutate = mutate
        self._hash = hashlib.sha256()
        self._folders = 0
        self._lives = 0
        self._connections = 0
        self._open: list[Connection] = []
        self._waiting: dict[str, list[tuple[AgentLife, asyncio.Future[Connection | None]]]] = {}
        self._gone_unheard: list[Connection] = []
        self._calls: dict[asyncio.Future[tuple[Any, Exception | None]], None] = {}
        self._next_folder = self._new_folder()
        self._peace = False

    # The run.

    def run(self) -> None:
        """Run the seed. FailedError if a check fails."""
        seed_everything(self.plan.seed)
        self.ear.listen()
        try:
            self.loop.run(self._main())
        except FailedError:
            pass
        except StuckError as error:
            self.fail("converge", str(error))
        finally:
            self._close()
        for problem in (*self.loop.failures, *self.ear.bugs):
            self.fail("bug", problem)
        if self.failure is not None:
            raise self.failure

    @property
    def trace_hash(self) -> str:
        """What happened, in one word: equal for two runs only if they were the same."""
        return self._hash.hexdigest()[:16]

    async def _main(self) -> None:
        self._begin_controller()
        for agent_id in self.plan.agent_ids:
            self._begin_agent(self._new_host(agent_id, agent_id))
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
                self._take_backup()
            self._look_at(self.random.choice(self.hosts))
            if self.plan.faults:
                weights = [WEIGHTS.get(name, 1) for name in self.plan.faults]
                name = self.random.choices(self.plan.faults, weights)[0]
                if faults.begin(self, name):
                    self.note("fault", name)
                    self.count(f"fault {name}")
            await asyncio.sleep(self.random.expovariate(1 / self.plan.fault_pause_s))

    def _look_at(self, host: Host) -> None:
        life = host.life
        if life is not None and life.is_up and life.branches:
            branches = [*life.branches, *([life.arriving] if life.arriving and life.arriving not in life.branches else [])]
            self.checks.agent(life, branches, traffic=True)

    def _make_peace(self) -> None:
        self.note("peace")
        self._peace = True
        self.reset_next.clear()
        self.controller_clock_ns = 0
        if self.controller is not None:
            self.controller.commits_to_fail = 0
            self.controller.process.paused = False
            self.controller.process.after_steps(1 << 60, lambda: None)
        for host in list(self.hosts):
            if host.name not in self.plan.agent_ids:
                self._drop_host(host)
        for host in self.hosts:
            self._heal(host)
            host.free_disk()
            if host.life is not None:
                host.life.process.paused = False
                host.life.process.after_steps(1 << 60, lambda: None)
        for connection in self._open:
            connection.reset_after = None

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
        request = rulesets.WaitForRevisionRequest(revision=self.branch.latest.revision)
        request.timeout.FromMilliseconds(500)
        _, response = await self.call("WaitForRevision", request, 5.0)
        if not response.in_force and not any(host.life and host.life.rejected for host in self.hosts):
            self.fail("converge", f"all agents are there, and WaitForRevision says {response}")

    def _unconverged(self) -> str:
        """Say what is not yet as it must become; empty if all is."""
        controller, latest = self.controller, self.branch.latest
        if controller is None or not controller.serving:
            return "no controller serves"
        for host in self.hosts:
            life = host.life
            if life is None or not life.is_up or not life.subscription.connected:
                return f"{host.name} is not connected"
            if life.replica.revision != latest.revision or life.branches != [self.branch]:
                return f"{host.name} is at revision {life.replica.revision}, the controller at {latest.revision}"
            expected = self.branch.spanned(latest.revision, host.agent_id, self.checks.still_held(life, latest))
            found = life.objects()
            for key in sorted(expected.keys() | found.keys()):
                if key not in life.rejected and expected.get(key) != found.get(key):
                    return f"{host.name} holds {key} as {found.get(key)}, should be {expected.get(key)}"
            channel = controller.core.publisher.find_channel(host.agent_id)
            if channel is None or channel.pending_since is not None:
                return f"{host.name} has yet to acknowledge"
        return ""

    def _check_bounds(self) -> None:
        assert self.controller is not None
        publisher = self.controller.core.publisher
        for agent_id in publisher.agent_ids():
            channel = publisher.find_channel(agent_id)
            if channel is not None and channel.backlog:
                self.fail("bounds", f"{channel.backlog} objects are left over for {agent_id}")
        streams = len(self.controller.connections)
        if streams > len(self.hosts):
            self.fail("bounds", f"{streams} streams for {len(self.hosts)} agents")
        bounds = [(self.controller.process, TASKS_CONTROLLER_MAX + TASKS_STREAM_MAX * streams)]
        bounds += [(host.life.process, TASKS_AGENT_MAX) for host in self.hosts if host.life is not None]
        for process, most in bounds:
            if len(process.live_tasks) > most:
                self.fail("bounds", f"{process.name} has {len(process.live_tasks)} tasks, the most allowed is {most}")

    def _close(self) -> None:
        for host in self.hosts:
            if host.life is not None:
                host.life.end()
        if self.controller is not None:
            self.controller.end()
            self.controller.close_files()

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

    # The controller.

    def _new_folder(self) -> Path:
        self._folders += 1
        return self.folder / f"controller-{self._folders}"

    def _begin_controller(self) -> None:
        if self.controller is not None:
            return
        self._lives += 1
        if self.loses_commits and self._backup is not None:
            self._next_folder = self._new_folder()
            shutil.copytree(self._backup[0], self._next_folder)
            self.count("planted")
        self._next_folder.mkdir(parents=True, exist_ok=True)
        self.controller = life = ControllerLife(self, self._lives, self._next_folder, self.branch)
        self.note("start", life.process.name)
        life.start()

    def opened(self, life: ControllerLife, store: SqliteStore) -> None:
        """A controller has opened the file: everything that was ever acknowledged must be in it."""
        latest = life.branch.latest
        if store.revision != latest.revision:
            self.fail("lost", f"the store opens at revision {store.revision}, it was at {latest.revision}")
            return
        contents = store.load()
        stored = State(
            contents.revision,
            {group.id: group for group in contents.groups},
            {rule.id: rule for rule in contents.rules},
            {server.key: server for server in contents.servers},
        )
        if stored.shape() != latest.shape():
            self.fail("lost", f"the store opens with other contents than were committed up to {latest.revision}")

    def committed(self, life: ControllerLife, store: SqliteStore) -> None:
        """A commit is over, one way or the other."""
        page = store.changes_since(life.branch.latest.revision)
        life.branch.add(page.changes)
        self.note("commit", life.branch.latest.revision)

    def answered(self, life: ControllerLife, method: str, request: Any, response: Any) -> None:
        """A call has been answered, in this moment."""
        if method == "WaitForRevision" and response.in_force:
            self.checks.said_in_force(life, request.revision)

    def refused(self, connection: Connection, error: Exception) -> None:
        """A stream was ended because the agent broke its rules, which a real one does not."""
        self.fail("bug", f"{connection.agent.process.name} was refused: {error}")

    def kill_controller(self, life: ControllerLife, restart_s: float) -> None:
        """Kill the controller; start it again later."""
        if self.controller is not life or self._peace:
            return
        self._next_folder = self._new_folder()
        life.copy_files(self._next_folder)
        self._gone(life, "killed")
        self.loop.later(restart_s, self._begin_controller)

    def stop_controller(self, restart_s: float) -> bool:
        """Have the controller stop; start it again later."""
        life = self.controller
        if life is None or not life.serving or life.process.paused:
            return False
        stopping = self.loop.start(life.process, life.stop())

        def stopped(task: asyncio.Task[None]) -> None:
            if task.exception() is not None:
                self.fail("bug", f"{life.process.name} does not stop: {task.exception()!r}")
            self._gone(life, "stopped")
            self.loop.later(restart_s, self._begin_controller)

        stopping.add_done_callback(stopped, context=self.loop.outside)
        return True

    def _gone(self, life: ControllerLife, how: str) -> None:
        self.note(how, life.process.name)
        self.count(f"controller {how}")
        self.controller = None
        life.end()
        life.close_files()
        for connection in list(self._open):
            if connection.controller is life:
                self._open.remove(connection)
                if not connection.link.down_blocked:
                    self.loop.later(self.random.random() * 0.01, connection.end_at_agent)
        for call in list(self._calls):
            if not call.done():
                call.set_result((None, LostError(reached=True)))

    def _take_backup(self) -> None:
        life = self.controller
        if life is not None and life.serving:
            self._folders += 1
            target = self.folder / f"backup-{self._folders}"
            life.copy_files(target)
            if self._backup is not None and self.random.random() < 0.5:
                shutil.rmtree(target)
            else:
                self._backup = (target, life.branch, life.branch.latest.revision)

    def put_back(self) -> bool:
        """Put the database back to an older copy."""
        life = self.controller
        if life is None or self._backup is None or self._peace:
            return False
        folder, branch, revision = self._backup
        self._gone(life, "killed")
        self._next_folder = self._new_folder()
        shutil.copytree(folder, self._next_folder)
        self.branch = branch.put_back(len(self._branches), revision)
        self._branches.append(self.branch)
        self.note("put back to", revision)
        self.loop.later(self.random.random(), self._begin_controller)
        return True

    async def call(self, method: str, request: Any, timeout_s: float) -> tuple[Branch, Any]:
        """Make a call; return its answer and the line of history it was given on. RefusalError, LostError."""
        await asyncio.sleep(self.random.random() * 0.01)
        life = self.controller
        if life is None or not life.serving:
            raise LostError(reached=False)
        outcome: asyncio.Future[tuple[Any, Exception | None]] = self.loop.create_future()
        self._calls[outcome] = None
        self.loop.start(life.process, self._serve(life, method, request, outcome))
        try:
            async with asyncio.timeout(timeout_s):
                response, error = await outcome
        except TimeoutError:
            raise LostError(reached=True) from None
        finally:
            del self._calls[outcome]
        await asyncio.sleep(self.random.random() * 0.01)
        if error is not None:
            raise error
        self.note("answer", method, getattr(response, "revision", ""))
        return life.branch, response

    @staticmethod
    async def _serve(
        life: ControllerLife, method: str, request: Any, outcome: asyncio.Future[tuple[Any, Exception | None]]
    ) -> None:
        response: Any = None
        error: Exception | None = None
        try:
            response = await life.serve(method, type(request).FromString(request.SerializeToString()))
        except RefusalError as refusal:
            error = refusal
        except asyncio.CancelledError:
            error = LostError(reached=True)
        except Exception as unexpected:
            life.world.fail("bug", f"{method}: {unexpected!r}")
            error = LostError(reached=True)
        if not outcome.done():
            outcome.set_result((response, error))

    # The agents.

    def _new_host(self, agent_id: str, name: str) -> Host:
        host = Host(agent_id, name, self.folder / name)
        self.hosts.append(host)
        link = self.links[name] = Link()
        link.delay_s, link.jitter_s, link.capacity = self.plan.delay_s, self.plan.jitter_s, self.plan.capacity
        return host

    def _begin_agent(self, host: Host) -> None:
        if host.life is not None or host not in self.hosts:
            return
        host.life = life = AgentLife(self, host)
        self.lives_by_boot[life.boot_id] = life
        self.note("start", life.process.name)
        life.start()

    def branches_of(self, life: AgentLife) -> list[Branch]:
        """Return the lines of history that have the revision of a state that was kept."""
        return [branch for branch in self._branches if branch.has(life.replica.revision)]

    def started(self, life: AgentLife) -> None:
        """An agent enforces what it had kept, if anything."""
        if life.branches:
            self.count("start from cache")
            self.checks.agent(life, life.branches, traffic=True)

    def kill_agent(self, life: AgentLife, restart_s: float) -> None:
        """Kill an agent; start it again later."""
        if life.host.life is not life or self._peace:
            return
        self.note("killed", life.process.name)
        self._agent_gone(life)
        self.loop.later(restart_s, self._begin_agent, life.host)

    def _agent_gone(self, life: AgentLife) -> None:
        life.host.life = None
        life.end()
        for connection in list(self._open):
            if connection.agent is life:
                self._open.remove(connection)
                connection.down.broken = True
                self.hung_up(connection)

    def hung_up(self, connection: Connection) -> None:
        """Let the controller find out that an agent's end is gone, when word of it gets through."""
        if connection.link.up_blocked:
            self._gone_unheard.append(connection)
        else:
            self.loop.later(self.random.random() * 0.01, connection.end_at_controller)

    def stop_agent(self, life: AgentLife, restart_s: float) -> bool:
        """Have an agent stop; start it again later."""
        if not life.is_up or life.process.paused:
            return False
        stopping = self.loop.start(life.process, life.stop())

        def stopped(task: asyncio.Task[None]) -> None:
            if task.exception() is not None:
                self.fail("bug", f"{life.process.name} does not stop: {task.exception()!r}")
            if life.host.life is life:
                self.note("stopped", life.process.name)
                self._agent_gone(life)
                self.loop.later(restart_s, self._begin_agent, life.host)

        stopping.add_done_callback(stopped, context=self.loop.outside)
        return True

    def rehouse(self, host: Host) -> bool:
        """Let the agent of a host go on with an empty folder and without flows, as on another machine."""
        if host.life is None or host.name != host.agent_id:
            return False
        self._agent_gone(host.life)
        host.free_disk()
        shutil.rmtree(host.folder)
        host.folder.mkdir()
        host.flows = None
        host.watched.clear()
        host.clock_ns = 0
        self.loop.later(self.random.random() * 0.5, self._begin_agent, host)
        return True

    def add_twin(self, host: Host, for_s: float) -> bool:
        """Start another agent with the same id for a while."""
        if any(other.agent_id == host.agent_id and other is not host for other in self.hosts):
            return False
        self._folders += 1
        twin = self._new_host(host.agent_id, f"{host.agent_id}-twin-{self._folders}")
        self._begin_agent(twin)
        self.loop.later(for_s, self._drop_host, twin)
        return True

    def _drop_host(self, host: Host) -> None:
        if host in self.hosts:
            self.hosts.remove(host)
            if host.life is not None:
                self._agent_gone(host.life)

    # The ways between them.

    def open_connections(self) -> list[Connection]:
        """Return the connections that neither end has given up."""
        self._open = [connection for connection in self._open if not connection.up.broken and not connection.down.broken]
        return self._open

    def connect(self, agent: AgentLife, outcome: asyncio.Future[Connection | None]) -> None:
        """Connect an agent, or not, a little later."""
        link = self.links[agent.host.name]
        self.loop.later(link.delay_s + self.random.random() * link.jitter_s, self._connect, agent, outcome)

    def _connect(self, agent: AgentLife, outcome: asyncio.Future[Connection | None]) -> None:
        if outcome.done() or not agent.process.alive:
            return
        link, controller = self.links[agent.host.name], self.controller
        if link.up_blocked or link.down_blocked:
            self._waiting.setdefault(agent.host.name, []).append((agent, outcome))
        elif link.refused or controller is None or not controller.serving:
            outcome.set_result(None)
        else:
            self._connections += 1
            connection = Connection(self.loop, link, agent, controller, self._connections)
            connection.reset_after = self.reset_next.pop(agent.host.name, None)
            self._open.append(connection)
            self.note("connected", agent.process.name, controller.process.name)
            controller.accept(connection)
            outcome.set_result(connection)

    def leak(self, connection: Connection) -> None:
        """Start a task in the controller that never ends."""
        self.count("planted")
        self.loop.start(connection.controller.process, asyncio.sleep(1e9))

    def block(self, host: Host, *, up: bool, down: bool, for_s: float) -> bool:
        """Hold up what goes in one direction or both."""
        link = self.links[host.name]
        link.up_blocked, link.down_blocked = link.up_blocked or up, link.down_blocked or down
        self.loop.later(for_s, self._heal, host)
        return True

    def _heal(self, host: Host) -> None:
        link = self.links[host.name]
        link.up_blocked = link.down_blocked = link.refused = False
        for connection in self._open:
            if connection.link is link:
                connection.up.unblock()
                connection.down.unblock()
        heard = [connection for connection in self._gone_unheard if connection.link is link]
        self._gone_unheard = [connection for connection in self._gone_unheard if connection.link is not link]
        for connection in heard:
            self.hung_up(connection)
        for agent, outcome in self._waiting.pop(host.name, []):
            self._connect(agent, outcome)

    def on_up(self, connection: Connection, packed: bytes) -> list[bytes]:
        """An agent says something; return what of it goes on its way."""
        message = pb.SubscribeRequest.FromString(packed)
        kind = message.WhichOneof("message")
        life = connection.agent
        self.note("up", connection.number, kind, message.ack.nonce, message.ack.applied_revision)
        if kind == "hello":
            if life.agent_id in self.plan.windows:
                message.hello.window.messages, message.hello.window.bytes = self.plan.windows[life.agent_id]
            connection.held_servers = {held.key for held in message.hello.held if held.kind == pb.OBJECT_KIND_SERVER}
        elif kind == "ack" and life.arriving is not None:
            self.checks.agent(life, [life.arriving])
            self.count("rejections", len(message.ack.rejected))
        self._count_message(connection)
        return [message.SerializeToString()]

    def on_down(self, connection: Connection, packed: bytes) -> list[bytes]:
        """The controller says something; return what of it goes on its way."""
        message = pb.SubscribeResponse.FromString(packed)
        kind = message.WhichOneof("message")
        self.note("down", connection.number, kind, message.update.nonce, message.update.revision, message.update.more)
        self.checks.sent(connection, message)
        if connection.agent.agent_id in self.plan.old_agents:
            message = _with_unknown_fields(message)
        messages = [message] if self._mutate is None else list(self._mutate(self, connection, message))
        self._count_message(connection)
        return [message.SerializeToString() for message in messages]

    def _count_message(self, connection: Connection) -> None:
        connection.messages += 1
        if connection.reset_after is not None and connection.messages >= connection.reset_after:
            self.count("reset in flight")
            connection.reset(self.random.random() * 0.01, self.random.random() * 0.01)


def _with_unknown_fields(message: pb.SubscribeResponse) -> pb.SubscribeResponse:
    """Return a message in which rules of the strange protocol have a field that the agent's program does not know."""
    for group in message.update.groups:
        for rule in group.rules:
            if rule.spec.protocol_number == STRANGE_PROTOCOL:
                rule.MergeFromString(_UNKNOWN_FIELD)
    return message
