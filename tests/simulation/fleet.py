"""The machines of the agents, and what becomes of the agents on them."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from agent_life import AgentLife, Host

if TYPE_CHECKING:
    from truth import Branch
    from world import World


class Fleet:
    """All hosts. ``lives_by_boot`` has every life that there was, by its boot id."""

    def __init__(self, world: World) -> None:
        self.hosts: list[Host] = []
        self.lives_by_boot: dict[str, AgentLife] = {}
        self._world = world
        # Agent ids of which there has been a second process.
        self.twinned: set[str] = set()
        self._twins = 0

    def new_host(self, agent_id: str, name: str) -> Host:
        host = Host(agent_id, name, self._world.folder / name)
        host.max_removal = self._world.plan.max_removals.get(agent_id, 1.0)
        self.hosts.append(host)
        self._world.network.add_link(name)
        return host

    def begin(self, host: Host) -> None:
        if host.life is not None or host not in self.hosts:
            return
        host.life = life = AgentLife(self._world, host)
        self.lives_by_boot[life.boot_id] = life
        self._world.note("start", life.process.name)
        life.start()

    def branches_of(self, life: AgentLife) -> list[Branch]:
        """Return the lines of history that have the revision of a state that was kept."""
        return [branch for branch in self._world.seat.branches if branch.has(life.replica.revision)]

    def started(self, life: AgentLife) -> None:
        """An agent enforces what it had kept, if anything."""
        if life.branches:
            self._world.count("start from cache")
            self._world.checks.agent(life, life.branches, traffic=True)

    def kill(self, life: AgentLife, restart_s: float) -> None:
        """Kill an agent; start it again later."""
        if life.host.life is not life or self._world.peace:
            return
        self._world.note("killed", life.process.name)
        self._agent_gone(life)
        self._world.loop.later(restart_s, self.begin, life.host)

    def _agent_gone(self, life: AgentLife) -> None:
        life.host.life = None
        life.end()
        self._world.checks.gone(life)
        self._world.network.agent_gone(life)

    def stop(self, life: AgentLife, restart_s: float) -> bool:
        """Have an agent stop; start it again later."""
        if not life.is_up or life.process.paused:
            return False
        stopping = self._world.loop.start(life.process, life.stop())

        def stopped(task: asyncio.Task[None]) -> None:
            if task.exception() is not None:
                self._world.fail("bug", f"{life.process.name} does not stop: {task.exception()!r}")
            if life.host.life is life:
                self._world.note("stopped", life.process.name)
                self._agent_gone(life)
                self._world.loop.later(restart_s, self.begin, life.host)

        stopping.add_done_callback(stopped, context=self._world.loop.outside)
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
        self._world.loop.later(self._world.random.random() * 0.5, self.begin, host)
        return True

    def add_twin(self, host: Host, for_s: float) -> bool:
        """Start another agent with the same id for a while."""
        if any(other.agent_id == host.agent_id and other is not host for other in self.hosts):
            return False
        self._twins += 1
        self.twinned.add(host.agent_id)
        twin = self.new_host(host.agent_id, f"{host.agent_id}-twin-{self._twins}")
        self.begin(twin)
        self._world.loop.later(for_s, self.drop, twin)
        return True

    def drop(self, host: Host) -> None:
        if host in self.hosts:
            self.hosts.remove(host)
            if host.life is not None:
                self._agent_gone(host.life)

    def look_at(self, host: Host) -> None:
        life = host.life
        if life is not None and life.is_up and life.branches:
            branches = [*life.branches, *([life.arriving] if life.arriving and life.arriving not in life.branches else [])]
            self._world.checks.agent(life, branches, traffic=True)
