"""What is known of every agent: whether it is connected, what it has in force, and why not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from secgroups.controller import obstacles
from secgroups.controller.agent_record import AgentRecord, AgentStatus, Fleet, Lag, Standing
from secgroups.controller.in_force import RevisionLog, Touched
from secgroups.controller.obstacles import Obstacle
from secgroups.controller.stream_messages import Kind, ObjectKey

if TYPE_CHECKING:
    from secgroups.controller.channel import AgentChannel
    from secgroups.controller.moves import Move, Moves
    from secgroups.controller.state import State

# Agents that came, guard nothing and went are remembered up to this number of records in all.
RECORDS_MAX = 10_000


class Roster:
    """The records of agents that connected, and how revisions stand with them.

    ``channels`` are the streams of those that have one, ``log`` holds what the latest revisions touched.
    """

    def __init__(self, state: State, moves: Moves) -> None:
        self.log = RevisionLog(state.revision, lambda agent_id: agent_id in self._records or state.guards(agent_id))
        self.channels: dict[str, AgentChannel] = {}
        self._state = state
        self._moves = moves
        self._records: dict[str, AgentRecord] = {}
        # By agent; told in the order in which they came.
        self._watchers: dict[str, dict[Callable[[str], None], None]] = {}

    def find(self, agent_id: str) -> AgentRecord | None:
        """Return the record of an agent that has connected."""
        return self._records.get(agent_id)

    def put(self, record: AgentRecord) -> None:
        """Take a record in, in place of the one that there may be."""
        agent_id = record.hello.agent_id
        # The latest to connect stands last.
        self._records.pop(agent_id, None)
        self._records[agent_id] = record
        if record.channel is not None:
            self.channels[agent_id] = record.channel
        if len(self._records) > RECORDS_MAX:
            self._forget_strangers()

    def end_stream(self, record: AgentRecord) -> None:
        """Note that an agent has no stream any more."""
        record.channel = None
        self.channels.pop(record.hello.agent_id, None)

    def settle(self, agent_id: str, now_us: int) -> None:
        """Look again at what an agent has in force, and tell those who watch it."""
        record = self._records.get(agent_id)
        rejected = record.rejected if record is not None else {}
        until = self._in_force_revision(agent_id)
        # Nearly always neither: then an acknowledgement costs the same whatever each revision touched.
        if rejected or self._moves.held_by(agent_id):
            self.log.settle(agent_id, until, now_us, partial(self._find_blocking, agent_id), rejected)
        else:
            self.log.settle(agent_id, until, now_us)
        if agent_id in self._watchers:
            for watcher in list(self._watchers[agent_id]):
                watcher(agent_id)

    def release_if_gone(self, agent_id: str) -> None:
        """Wait for an agent no more if it is not connected and what revisions touched of it is not its own any more."""
        if self._is_gone(agent_id):
            self.log.release(agent_id)
            for watcher in list(self._watchers.get(agent_id, ())):
                watcher(agent_id)

    # How it stands with a revision.

    def is_in_force(self, revision: int) -> bool:
        """Whether every agent that a revision touched has it in force."""
        touched = self.log.find(revision)
        if touched is not None and touched.waiting:
            return False
        return not any(self._lags(agent_id, revision, touched) for agent_id in self._agents_touched(revision, touched))

    def standing(self, revision: int) -> Standing:
        """Return how it stands with a revision."""
        touched = self.log.find(revision)
        agent_ids = self._agents_touched(revision, touched)
        late = sorted(agent_id for agent_id in agent_ids if self._lags(agent_id, revision, touched))
        taken_us = None
        if touched is not None and touched.in_force_us is not None and not late:
            taken_us = max(0, touched.in_force_us - touched.commit_us(revision))
        lagging = tuple(self.lag(agent_id, revision, touched) for agent_id in late)
        return Standing(agents_touched=len(agent_ids), lagging=lagging, commit_to_in_force_us=taken_us)

    def watch(self, revision: int, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` when it is worth asking again whether a revision is in force; return what ends that.

        Those who wait for a revision that is known cost its agents nothing when they acknowledge, however many wait.
        """
        touched = self.log.find(revision)
        if touched is not None and touched.waiting:
            return self.log.watch(touched, watcher)
        late = {agent_id for agent_id in self._agents_touched(revision, touched) if self._lags(agent_id, revision, touched)}

        def look(agent_id: str) -> None:
            if not self._lags(agent_id, revision, self.log.find(revision)):
                late.discard(agent_id)
                if not late:
                    watcher()

        return self.watch_agents(sorted(late), look)

    def watch_agents(self, agent_ids: Iterable[str], watcher: Callable[[str], None]) -> Callable[[], None]:
        """Call ``watcher`` with an agent's id whenever one of ``agent_ids`` acknowledges something; return what ends that."""
        watched = list(agent_ids)
        for agent_id in watched:
            self._watchers.setdefault(agent_id, {})[watcher] = None

        def unwatch() -> None:
            for agent_id in watched:
                watchers = self._watchers.get(agent_id, {})
                watchers.pop(watcher, None)
                if not watchers:
                    self._watchers.pop(agent_id, None)

        return unwatch

    # What is shown.

    def agent_ids(self) -> list[str]:
        """Return, in ascending order, the agents that guard a server or have connected."""
        return sorted({*self._state.agents(), *self._records})

    def find_status(self, agent_id: str) -> AgentStatus | None:
        """Return what is known of an agent, None if it neither guards a server nor has connected."""
        record = self._records.get(agent_id)
        server_count = len(self._state.servers_of_agent(agent_id))
        waiting = self.log.waiting(agent_id)
        lag_since_us = self.log.find_oldest_commit_us(agent_id)
        if record is None:
            if not server_count:
                return None
            return AgentStatus(
                agent_id=agent_id,
                connected=False,
                pending_revisions=max(1, waiting),
                server_count=server_count,
                lag_since_us=lag_since_us,
            )
        connected = record.channel is not None
        return AgentStatus(
            agent_id=agent_id,
            connected=connected,
            boot_id=record.hello.boot_id,
            version=record.hello.version,
            host=record.hello.host,
            applied_revision=record.applied_revision,
            pending_revisions=max(1, waiting) if record.pending_since is not None else waiting,
            last_heard_us=record.last_heard_us,
            heard_clock_us=record.heard_clock_us,
            connected_us=record.connected_us if connected else None,
            rejected=tuple(record.rejected[key] for key in sorted(record.rejected)),
            server_count=server_count,
            report=record.report,
            held_back=record.held_back,
            lag_since_us=lag_since_us,
        )

    def fleet(self) -> Fleet:
        """Count the agents that guard a server or are connected. Takes time in proportion to them."""
        known = self._all_agents()
        records = [(agent_id, self._records.get(agent_id)) for agent_id in known]
        oldest = [since_us for agent_id in known if (since_us := self.log.find_oldest_commit_us(agent_id)) is not None]
        return Fleet(
            known=len(known),
            connected=sum(record is not None and record.channel is not None for _, record in records),
            lagging=sum(
                record is None or record.pending_since is not None or self.log.waiting(agent_id) > 0 for agent_id, record in records
            ),
            rejecting=sum(record is not None and bool(record.rejected) for _, record in records),
            holding_back=sum(record is not None and record.held_back is not None for _, record in records),
            oldest_lag_since_us=min(oldest, default=None),
        )

    def _all_agents(self) -> frozenset[str]:
        return frozenset([*self._state.agents(), *self.channels])

    def _forget_strangers(self) -> None:
        strangers = [
            agent_id
            for agent_id, record in self._records.items()
            if record.channel is None and not self._state.servers_of_agent(agent_id)
        ]
        for agent_id in strangers[: len(self._records) - RECORDS_MAX]:
            del self._records[agent_id]

    # Who is late, and why.

    def _agents_touched(self, revision: int, touched: Touched | None) -> frozenset[str]:
        """Return the agents that a revision touched. If that is not known any more, all that may have been."""
        if touched is not None:
            return touched.agent_ids
        if self.log.knows(revision):
            return frozenset()
        behind = (agent_id for agent_id, record in self._records.items() if record.pending_since is not None)
        return self._all_agents().union(behind)

    def _in_force_revision(self, agent_id: str) -> int:
        """Return the revision up to which an agent has in force all that touched it; 0 if that is not known."""
        record = self._records.get(agent_id)
        if record is None:
            return 0
        since = record.pending_since
        return self._state.revision if since is None else since - 1

    def _lags(self, agent_id: str, revision: int, touched: Touched | None) -> bool:
        if self._in_force_revision(agent_id) < revision:
            return touched is None or not self._is_gone(agent_id) or touched.removes_for_good
        return self._find_obstacle(agent_id, revision, touched) is not None

    def _is_gone(self, agent_id: str) -> bool:
        """Whether an agent is not connected, guards nothing, and holds nothing on its way to another one."""
        record = self._records.get(agent_id)
        if (record is not None and record.channel is not None) or self._state.guards(agent_id):
            return False
        return not self._moves.held_by(agent_id)

    def may_lack(self, agent_id: str, project: str, revision: int) -> bool:
        """Whether an agent may lack what a project changed up to a revision of which it is not known what it touched.

        What it rejects, or does not let go of, counts only if it is the project's.
        """
        if self._in_force_revision(agent_id) < revision:
            return True
        record = self._records.get(agent_id)
        against: list[ObjectKey] = [*(record.rejected if record else ())]
        against += [(Kind.SERVER, move.server) for move in self._moves_of(agent_id, revision, None)]
        return any(self._is_of(project, key) for key in against)

    def _is_of(self, project: str, key: ObjectKey) -> bool:
        kind, name = key
        if kind is Kind.SERVER:
            return name.partition("/")[0] == project
        return self._state.find_group(project, name) is not None

    def lag(self, agent_id: str, revision: int, touched: Touched | None) -> Lag:
        """Return how an agent lags behind a revision that touched it."""
        record = self._records.get(agent_id)
        obstacle = None
        if self._in_force_revision(agent_id) >= revision:
            obstacle = self._find_obstacle(agent_id, revision, touched)
        return Lag(
            agent_id=agent_id,
            connected=record is not None and record.channel is not None,
            applied_revision=record.applied_revision if record else 0,
            obstacle=obstacle or self._why_behind(agent_id, record),
        )

    def _why_behind(self, agent_id: str, record: AgentRecord | None) -> Obstacle:
        if record is not None and record.held_back is not None:
            return obstacles.held_back(record.held_back)
        if record is not None and record.channel is not None:
            return obstacles.behind(self.log.waiting(agent_id))
        guards = self._state.guards(agent_id)
        return obstacles.away(guards=guards, last_heard_us=record.last_heard_us if record else None)

    def _find_blocking(self, agent_id: str, touched: Touched) -> ObjectKey | None:
        """Return an object that stands against an agent's having in force what it has acknowledged."""
        record = self._records.get(agent_id)
        for key in record.rejected if record else ():
            if key in touched.keys:
                return key
        for move in self._moves_of(agent_id, touched.last_revision, touched):
            return Kind.SERVER, move.server
        return None

    def _find_obstacle(self, agent_id: str, revision: int, touched: Touched | None) -> Obstacle | None:
        """Return what of a revision an agent that has acknowledged it does not have in force; None if it has it all."""
        record = self._records.get(agent_id)
        for key, rejected in record.rejected.items() if record else ():
            if touched is None or key in touched.keys:
                return obstacles.rejected(rejected)
        for move in self._moves_of(agent_id, revision, touched):
            return obstacles.moving(move)
        return None

    def _moves_of(self, agent_id: str, revision: int, touched: Touched | None) -> list[Move]:
        """Return the moves of what a revision touched, in it or before, with which an agent has not let go yet."""
        moves = [move for move in self._moves.held_by(agent_id) if move.old_agent_ids[agent_id] <= revision]
        return [move for move in moves if touched is None or (Kind.SERVER, move.server) in touched.keys]
