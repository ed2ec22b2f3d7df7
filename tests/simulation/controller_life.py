"""One life of the simulated controller: the real store on a real file, core, publisher and services, from a start to its end."""

from __future__ import annotations

import asyncio
import shutil
from collections import deque
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from streams import Connection, ServerContext
from truth import Branch
from virtual_loop import Process

from secgroups.controller.clocks import Clocks
from secgroups.controller.core import Core
from secgroups.controller.errors import ControllerError
from secgroups.controller.limits import Limits
from secgroups.controller.services.agents import Agents
from secgroups.controller.services.attachments import AttachmentService
from secgroups.controller.services.groups import GroupService
from secgroups.controller.services.rules import RuleService
from secgroups.controller.services.rulesets import RulesetService
from secgroups.controller.services.servers import ServerService
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.controller.store_writer import BATCH_MAX
from secgroups.controller.stream_settings import StreamSettings
from secgroups.controller.watchers import Watchers

if TYPE_CHECKING:
    from world import World

DATABASE = "secgroups.db"
COMMIT_S_MAX = 0.004
STOP_GRACE_S = 1.0


class LoopWriter:
    """What the store's thread does, on the virtual loop: commits take a while, and their results another while to come back."""

    def __init__(self, life: ControllerLife, work: Callable[[list[Any]], Callable[[], None]]) -> None:
        self._life = life
        self._loop = life.world.loop
        self._work = work
        self._waiting: list[Any] = []
        self._busy = False
        self._told_s = 0.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._untold: deque[Callable[[], None]] = deque()

    def put(self, item: Any) -> None:
        self._waiting.append(item)
        self._idle.clear()
        self._begin()

    def _begin(self) -> None:
        if not self._busy and self._waiting:
            self._busy = True
            self._loop.call_later(self._loop.random.random() * COMMIT_S_MAX, self._commit)

    def _commit(self) -> None:
        batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
        done = self._life.commit(self._work, batch)
        self._busy = False
        # Results come back in order: timers of one instant would not.
        self._untold.append(done)
        self._told_s = max(self._told_s, self._loop.time() + self._loop.random.random() * COMMIT_S_MAX)
        self._loop.call_at(self._told_s, self._tell)
        self._begin()

    def _tell(self) -> None:
        self._untold.popleft()()
        if not self._untold and not self._waiting and not self._busy:
            self._idle.set()

    async def close(self) -> None:
        await self._idle.wait()


class RefusalError(Exception):
    """A call that was answered with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class ControllerLife:
    """A process of the controller. ``branch`` is the line of history that it writes."""

    def __init__(self, world: World, number: int, folder: Path, branch: Branch) -> None:
        self.world = world
        self.branch = branch
        self.start_revision = branch.latest.revision
        self.folder = folder
        self.process = Process(f"controller#{number}")
        self.serving = False
        self.stopping = False
        self.connections: list[Connection] = []
        self.commits_to_fail = 0
        self.doubtful = False
        self._store: SqliteStore | None = None

    @property
    def core(self) -> Core:
        return self._core

    def start(self) -> None:
        """Start the process."""
        self.world.loop.start(self.process, self._run())

    async def _run(self) -> None:
        world, plan = self.world, self.world.plan
        self._store = SqliteStore(self.folder / DATABASE, clock_us=lambda: world.wall_ns(world.seat.clock_ns) // 1000)
        world.seat.opened(self, self._store)
        self._core = core = Core(
            self._store,
            preview_timeout_s=0.5,
            start_writer=lambda work: LoopWriter(self, work),  # type: ignore[arg-type, return-value]
        )
        clocks = Clocks(
            time_of_day_ns=lambda: world.wall_ns(world.seat.clock_ns), monotonic_ns=lambda: int(world.loop.time() * 1e9)
        )
        watchers = Watchers(16)
        core.listen(watchers.changed)
        limits = Limits()
        self.rulesets = RulesetService(core, watchers)
        settings = StreamSettings(heartbeat_s=plan.heartbeat_s, coalesce_s=plan.coalesce_s, hello_timeout_s=5.0)
        self.agents = Agents(core, settings, clocks)
        self.services: dict[str, Any] = {}
        for service in (
            GroupService(core),
            RuleService(core),
            ServerService(core, limits),
            AttachmentService(core, limits),
            self.rulesets,
            self.agents,
        ):
            for name in dir(service):
                if name[0].isupper():
                    self.services[name] = getattr(service, name)
        self.serving = True

    def commit(self, work: Callable[[list[Any]], Callable[[], None]], batch: list[Any]) -> Callable[[], None]:
        """Commit a batch; take down what the change log says of it, whatever becomes of this process."""
        store = self._store
        assert store is not None
        if self.commits_to_fail:
            self.commits_to_fail -= 1
            self.world.count("store_failed")
            # After some number of steps SQLite gives up, as it does for a disk that fails: once, some times, or until the end.
            random = self.world.loop.random
            failures = repeat(1, random.choice((1, 1, 2, 3, 1_000_000)))
            store._connection.set_progress_handler(lambda: next(failures, 0), random.randrange(1, 400))
        try:
            done = work(batch)
        finally:
            store._connection.set_progress_handler(None, 0)
        self.world.seat.committed(self, store)
        return done

    # Calls.

    async def serve(self, method: str, request: Any) -> Any:
        """Answer a call; to be run in the process. RefusalError if the answer is an error."""
        try:
            response = await self.services[method](request, _CallContext())
        except ControllerError as error:
            raise RefusalError(error.code, str(error)) from None
        self.world.seat.answered(self, method, request, response)
        return response

    def accept(self, connection: Connection) -> None:
        """Take a new stream in."""
        self.connections.append(connection)
        connection.handler = self.world.loop.start(self.process, self._subscribe(connection))

    async def _subscribe(self, connection: Connection) -> None:
        status = (grpc.StatusCode.OK, "")
        try:
            await self.agents.Subscribe(None, ServerContext(connection))  # type: ignore[arg-type]
        except ControllerError as error:
            status = (grpc.StatusCode[error.code], str(error))
            self.world.count("stream_refused")
            self.world.seat.refused(connection, error)
        except asyncio.CancelledError:
            status = (grpc.StatusCode.CANCELLED, "")
        except (grpc.aio.InternalError, asyncio.InvalidStateError) as error:
            if not connection.up.broken and not connection.down.broken:
                self.world.fail("bug", f"{self.process.name}: {error!r} in a stream")
            status = (grpc.StatusCode.UNKNOWN, str(error))
        except Exception as error:
            self.world.fail("bug", f"{self.process.name}: {error!r} in a stream")
            status = (grpc.StatusCode.UNKNOWN, str(error))
        finally:
            if self.process.alive:
                self.connections.remove(connection)
                connection.status = connection.status or status
                connection.up.break_off()
                connection.down.send(None)

    # The end.

    async def stop(self) -> None:
        """Stop as a controller does that is told to; to be run in the process."""
        self.serving = False
        self.stopping = True
        self.core.publisher.end_all("the controller is stopping", self.core.returns.next_s)
        self.rulesets.close()
        handlers = [connection.handler for connection in self.connections if connection.handler is not None]
        if handlers:
            await asyncio.wait(handlers, timeout=STOP_GRACE_S)
            for handler in handlers:
                handler.cancel()
            await asyncio.wait(handlers)
        await self.core.close()

    def end(self) -> None:
        """End the process where it stands; its file stays as it is in that moment."""
        self.serving = False
        self.world.loop.kill(self.process)
        for connection in self.connections:
            connection.up.broken = True

    def copy_files(self, target: Path) -> None:
        """Copy the database as another process would find it now."""
        target.mkdir(parents=True)
        for suffix in ("", "-wal"):
            source = self.folder / (DATABASE + suffix)
            if source.exists():
                shutil.copyfile(source, target / (DATABASE + suffix))

    def close_files(self) -> None:
        """Let go of the files of a process that is gone."""
        if self._store is not None:
            self._store.close()
            self._store = None


class _CallContext:
    """What a unary handler sees of its call."""

    def peer(self) -> str:
        return "sim:client"
