"""Where lives of the controller follow each other: its files, its backups, what becomes of it, and calls to it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller_life import ControllerLife, RefusalError
from truth import Branch, State

from secgroups.controller.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from world import World


class LostError(Exception):
    """Whether the call was made is not known. ``reached``: it may have been."""

    def __init__(self, *, reached: bool) -> None:
        super().__init__("unavailable")
        self.reached = reached


Outcome = asyncio.Future[tuple[Any, Exception | None]]


class ControllerSeat:
    """One controller at a time; ``life`` is None while there is none. ``branch`` is the line of history that its file is on."""

    def __init__(self, world: World) -> None:
        self.life: ControllerLife | None = None
        self.branch = Branch(0, [State()])
        self.branches = [self.branch]
        self.clock_ns = 0
        self._world = world
        self._backup: tuple[Path, Branch, int] | None = None
        self._folders = 0
        self._lives = 0
        self._calls: dict[Outcome, None] = {}
        self._next_folder = self._new_folder()

    def _new_folder(self) -> Path:
        self._folders += 1
        return self._world.folder / f"controller-{self._folders}"

    def begin(self) -> None:
        if self.life is not None:
            return
        self._lives += 1
        if self._world.loses_commits and self._backup is not None:
            self._next_folder = self._new_folder()
            shutil.copytree(self._backup[0], self._next_folder)
            self._world.count("planted")
        self._next_folder.mkdir(parents=True, exist_ok=True)
        self.life = life = ControllerLife(self._world, self._lives, self._next_folder, self.branch)
        self._world.note("start", life.process.name)
        life.start()

    def opened(self, life: ControllerLife, store: SqliteStore) -> None:
        """A controller has opened the file: everything that was ever acknowledged must be in it."""
        latest = life.branch.latest
        if store.revision != latest.revision:
            self._world.fail("lost", f"the store opens at revision {store.revision}, it was at {latest.revision}")
            return
        contents = store.load()
        stored = State(
            contents.revision,
            {group.id: group for group in contents.groups},
            {rule.id: rule for rule in contents.rules},
            {server.key: server for server in contents.servers},
        )
        if stored.shape() != latest.shape():
            self._world.fail("lost", f"the store opens with other contents than were committed up to {latest.revision}")

    def committed(self, life: ControllerLife, store: SqliteStore) -> None:
        """A commit is over, one way or the other."""
        page = store.changes_since(life.branch.latest.revision)
        life.branch.add(page.changes)
        self._world.note("commit", life.branch.latest.revision)
        if store.revision != life.branch.latest.revision and not life.doubtful:
            # It could not find out whether a commit took effect. It says so from now on, and that it wants to be started again.
            life.doubtful = True
            self._world.count("store in doubt")
            self._world.loop.later(1.0, self.stop, 0.2)

    def answered(self, life: ControllerLife, method: str, request: Any, response: Any) -> None:
        """A call has been answered, in this moment."""
        if method == "WaitForRevision" and response.in_force:
            self._world.promises.said_in_force(life, request.revision)

    def kill(self, life: ControllerLife, restart_s: float) -> None:
        """Kill the controller; start it again later."""
        if self.life is not life or self._world.peace:
            return
        self._next_folder = self._new_folder()
        life.copy_files(self._next_folder)
        self._gone(life, "killed")
        self._world.loop.later(restart_s, self.begin)

    def stop(self, restart_s: float) -> bool:
        """Have the controller stop; start it again later."""
        life = self.life
        if life is None or not life.serving or life.process.paused:
            return False
        stopping = self._world.loop.start(life.process, life.stop())

        def stopped(task: asyncio.Task[None]) -> None:
            if task.exception() is not None:
                self._world.fail("bug", f"{life.process.name} does not stop: {task.exception()!r}")
            self._gone(life, "stopped")
            self._world.loop.later(restart_s, self.begin)

        stopping.add_done_callback(stopped, context=self._world.loop.outside)
        return True

    def _gone(self, life: ControllerLife, how: str) -> None:
        self._world.note(how, life.process.name)
        self._world.count(f"controller {how}")
        self.life = None
        life.end()
        life.close_files()
        self._world.network.controller_gone(life)
        for call in list(self._calls):
            if not call.done():
                call.set_result((None, LostError(reached=True)))

    def take_backup(self) -> None:
        life = self.life
        if life is not None and life.serving:
            self._folders += 1
            target = self._world.folder / f"backup-{self._folders}"
            life.copy_files(target)
            if self._backup is not None and self._world.random.random() < 0.5:
                shutil.rmtree(target)
            else:
                self._backup = (target, life.branch, life.branch.latest.revision)

    def put_back(self) -> bool:
        """Put the database back to an older copy."""
        life = self.life
        if life is None or self._backup is None or self._world.peace:
            return False
        folder, branch, revision = self._backup
        self._gone(life, "killed")
        self._next_folder = self._new_folder()
        shutil.copytree(folder, self._next_folder)
        self.branch = branch.put_back(len(self.branches), revision)
        self.branches.append(self.branch)
        self._world.note("put back to", revision)
        self._world.loop.later(self._world.random.random(), self.begin)
        return True

    async def call(self, method: str, request: Any, timeout_s: float) -> tuple[Branch, Any]:
        """Make a call; return its answer and the line of history it was given on. RefusalError, LostError."""
        await asyncio.sleep(self._world.random.random() * 0.01)
        life = self.life
        if life is None or not life.serving:
            raise LostError(reached=False)
        outcome: Outcome = self._world.loop.create_future()
        self._calls[outcome] = None
        self._world.loop.start(life.process, self._serve(life, method, request, outcome))
        try:
            async with asyncio.timeout(timeout_s):
                response, error = await outcome
        except TimeoutError:
            raise LostError(reached=True) from None
        finally:
            del self._calls[outcome]
        await asyncio.sleep(self._world.random.random() * 0.01)
        if error is not None:
            raise error
        self._world.note("answer", method, getattr(response, "revision", ""))
        return life.branch, response

    @staticmethod
    async def _serve(life: ControllerLife, method: str, request: Any, outcome: Outcome) -> None:
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
