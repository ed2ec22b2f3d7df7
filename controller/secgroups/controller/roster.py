"""What is known of every agent: whether it is connected, what it has in force, and why not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from secgroups.controller.agent_record import AgentRecord, AgentStatus, Lag, Standing
from secgroups.controller.in_force import RevisionLog, Touched
from secgroups.controller.stream_messages import Kind

if TYPE_CHECKING:
    from secgroups.controller.moves import Move, Moves
    from secgroups.controller.state import State

# Agents that came, guard nothing and went are remembered up to this number of records in all.
RECORDS_MAX = 10_000


class Roster:
    """The records of agents that connected, and how revisions stand with them. ``log`` holds what the latest revisions touched."""

    def __init__(self, state: State, moves: Moves) -> None:
        self.log = RevisionLog(state.revision)
        self._state = state
        self._moves = moves
        self._records: dict[str, AgentRecord] = {}
        # By agent; told in the order in which they came.
        self._watchers: dict[str, dict[Callable[[str], None], None]] = {}

    def find(self, agent_id: str) -> AgentRecord | None:
        """Return the record of an agent that has connected."""
        return self._records.get(agent_id)

    def connected(self) -> Iterator[AgentRecord]:
        """Yield the records of the agents that have a stream."""
        return (record for record in self._records.values() if record.channel is not None)

    def put(self, record: AgentRecord) -> None:
        """Take a record in, in place of the one that there may be."""
        agent_id = record.hello.agent_id
        # The latest to connect stands last.
        self._records.pop(agent_id, None)
        self._records[agent_id] = record
        if len(self._records) > RECORDS_MAX:
            self._forget_strangers()

    def settle(self, agent_id: str, now_us: int) -> None:
        """Look again at what an agent has in force, and tell those who watch it."""
        self.log.settle(
            agent_id,
            self._in_force_revision(agent_id),
            lambda touched: bool(self._obstacle(agent_id, touched.revision, touched)),
            now_us,
        )
        for watcher in list(self._watchers.get(agent_id, ())):
            watcher(agent_id)

    def standing(self, revision: int) -> Standing:
        """Return how it stands with a revision."""
        touched = self.log.find(revision)
        agent_ids = touched.agent_ids if touched else frozenset[str]()
        if not self.log.knows(revision):
            agent_ids = self._all_agents()
        lags = (self._find_lag(agent_id, revision, touched) for agent_id in sorted(agent_ids))
        lagging = tuple(lag for lag in lags if lag is not None)
        taken_us = None
        if touched is not None and touched.in_force_us is not None and not lagging:
            taken_us = max(0, touched.in_force_us - touched.commit_us)
        return Standing(agents_touched=len(agent_ids), lagging=lagging, commit_to_in_force_us=taken_us)

    def lags(self, agent_id: str, revision: int) -> bool:
        """Whether an agent does not have a revision in force; ``standing`` for one of the agents that it touched."""
        return self._find_lag(agent_id, revision, self.log.find(revision)) is not None

    def watch(self, agent_ids: Iterable[str], watcher: Callable[[str], None]) -> Callable[[], None]:
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

    def agent_ids(self) -> list[str]:
        """Return, in ascending order, the agents that guard a server or have connected."""
        return sorted({*self._state.agents(), *self._records})

    def find_status(self, agent_id: str) -> AgentStatus | None:
        """Return what is known of an agent, None if it neither guards a server nor has connected."""
        record = self._records.get(agent_id)
        server_count = len(self._state.servers_of_agent(agent_id))
        waiting = self.log.waiting(agent_id)
        if record is None:
            if not server_count:
                return None
            return AgentStatus(agent_id=agent_id, connected=False, pending_revisions=max(1, waiting), server_count=server_count)
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
        )

    def _all_agents(self) -> frozenset[str]:
        return frozenset([*self._state.agents(), *(record.hello.agent_id for record in self.connected())])

    def _forget_strangers(self) -> None:
        strangers = [
            agent_id
            for agent_id, record in self._records.items()
            if record.channel is None and not self._state.servers_of_agent(agent_id)
        ]
        for agent_id in strangers[: len(self._records) - RECORDS_MAX]:
            del self._records[agent_id]

    def _in_force_revision(self, agent_id: str) -> int:
        """Return the revision up to which an agent has in force all that touched it; 0 if that is not known."""
        record = self._records.get(agent_id)
        if record is None:
            return 0
        return self._state.revision if record.pending_since is None else record.pending_since - 1

    def _find_lag(self, agent_id: str, revision: int, touched: Touched | None) -> Lag | None:
        record = self._records.get(agent_id)
        connected = record is not None and record.channel is not None
        if self._in_force_revision(agent_id) < revision:
            reason = "not acknowledged yet" if connected else "not connected"
        else:
            reason = self._obstacle(agent_id, revision, touched)
        if not reason:
            return None
        applied_revision = record.applied_revision if record else 0
        return Lag(agent_id=agent_id, connected=connected, applied_revision=applied_revision, reason=reason)

    def _obstacle(self, agent_id: str, revision: int, touched: Touched | None) -> str:
        """Say what of a revision an agent that has acknowledged it does not have in force; empty if it has it all."""
        record = self._records.get(agent_id)
        for key, rejected in record.rejected.items() if record else ():
            if touched is None or key in touched.keys:
                return f"rejected {key[0].word} {key[1]} at version {rejected.version}: {rejected.message}"
        for move in self._moves_of(agent_id, revision, touched):
            return f"still guards {move.server} until {move.to_agent_id} has it in force"
        return ""

    def _moves_of(self, agent_id: str, revision: int, touched: Touched | None) -> list[Move]:
        if touched is None:
            return [move for move in self._moves.held_by(agent_id) if move.revision <= revision]
        moves = [self._moves.find(name) for kind, name in touched.keys if kind is Kind.SERVER]
        return [move for move in moves if move and move.revision == revision and agent_id in move.old_agent_ids]
