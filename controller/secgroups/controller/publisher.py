"""Decides which agent is told what: folds every change into the agents' spans and keeps one channel per connected agent.

Plain Python without a loop or a socket: the services and the case runner call it, always from one thread. A change costs what it
touches: the agents that are told, and for each the objects that changed.

Migration: a server that moves stays in the span of its old agent, as far as that one holds it, until the new agent has acknowledged
the move without rejecting the server or one of its groups; see ``moves``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from secgroups.controller.agent_record import AgentRecord, AgentStatus, Fleet, Standing
from secgroups.controller.channel import AgentChannel
from secgroups.controller.interest import Interest, Marks
from secgroups.controller.marked import MarkedAgents
from secgroups.controller.model import Group, Rule, Server, alters_what_is_allowed, groups_with_other_members
from secgroups.controller.moves import Move, Moves
from secgroups.controller.own_revisions import OwnRevisions
from secgroups.controller.ready_steps import ReadySteps
from secgroups.controller.resume import Since, Source, is_on_history
from secgroups.controller.roster import Roster
from secgroups.controller.set_history import SetHistory
from secgroups.controller.stream_messages import Hello, Kind, ObjectKey, Report
from secgroups.controller.stream_objects import StreamObjects

if TYPE_CHECKING:
    from secgroups.controller.delays import DelayCounts
    from secgroups.controller.model import Change, Object
    from secgroups.controller.state import State
    from secgroups.controller.store.interface import Lineage

# What an agent that lost its id to a later start is told to wait.
SUPERSEDED_RECONNECT_S = 30.0


class Publisher:
    """The streams of all agents and what is known of each."""

    def __init__(self, state: State, lineage: Lineage) -> None:
        """Start from ``state`` as it is, loaded from the store whose past is ``lineage``. Takes time in proportion to it, once."""
        self._state = state
        self._interest = Interest()
        self._objects = StreamObjects(state)
        self._history = SetHistory()
        self._moves = Moves()
        self._roster = Roster(state, self._moves)
        # The same, as far as one project is concerned.
        self.own = OwnRevisions(state, self._roster)
        self._marked = MarkedAgents()
        self._source = Source(
            state=state,
            lineage=lineage,
            interest=self._interest,
            objects=self._objects,
            history=self._history,
            log=self._roster.log,
            marked=self._marked,
            ready_steps=ReadySteps(),
        )
        self._load()

    def _load(self) -> None:
        state = self._state
        for group in state.all_groups():
            self._objects.know_group(group)
            self._history.begin(group.id, group.members_revision)
        for server in state.all_servers():
            if server.previous_agent_ids and server.agent_id:
                # The latest was left with the last move; when the others were is not kept: at any time since the first revision.
                left = dict.fromkeys(server.previous_agent_ids, 1) | {server.previous_agent_ids[0]: server.moved_revision}
                self._moves.begin(server.key, left, server.agent_id, server.moved_revision)
        self._interest.begin(
            ((rule.group_id, remote) for rule in state.all_rules() if (remote := rule.spec.remote_group_id)),
            (
                (agent_id, server.key, server.group_ids)
                for server in state.all_servers()
                for agent_id in self._agents_to_hold(server)
            ),
        )

    # Changes.

    def changed(self, changes: Sequence[Change]) -> None:
        """Take note of changes that ``state`` already has, in the order of their revisions, however many revisions they are.

        What is told at once is sent at once: no agent ever gets a part of it. So revisions that touched the same objects of the
        same agents are one entry in the log.
        """
        self.own.changed(changes)
        awake: list[AgentChannel] = []
        away: set[str] = set()
        alike: dict[tuple[frozenset[str], frozenset[ObjectKey], bool], list[Since]] = {}
        for revision, batch in groupby(changes, key=lambda change: change.revision):
            marks: Marks = []
            commit_us = 0
            removes_for_good = False
            for change in batch:
                commit_us = change.at_us
                marks += self._marks_of(change)
                removes_for_good |= _leaves_unguarded(change)
            since = Since(revision, commit_us)
            touched = frozenset[str]().union(*(agent_ids for agent_ids, _ in marks))
            if not touched:
                continue
            for agent_ids, key in marks:
                # Where it is marked already, since then counts.
                self._mark(self._marked.unmarked(key, agent_ids), key, since, awake, away)
            alike.setdefault((touched, frozenset(key for _, key in marks), removes_for_good), []).append(since)
        for (touched, keys, removes_for_good), commits in alike.items():
            self._roster.log.add(commits, touched, keys, removes_for_good=removes_for_good)
        for agent_id in away:
            self._roster.release_if_gone(agent_id)
        for channel in awake:
            channel.wake()

    def _mark(self, agent_ids: Set[str], key: ObjectKey, since: Since, awake: list[AgentChannel], away: set[str]) -> None:
        """Mark an object for agents. Those that are to be woken are added to ``awake``, those without a stream to ``away``."""
        channels = self._roster.channels
        streamless = set()
        for agent_id in agent_ids:
            channel = channels.get(agent_id)
            if channel is None:
                streamless.add(agent_id)
            elif channel.mark(key, since):
                awake.append(channel)
        for agent_id in streamless:
            record = self._roster.find(agent_id)
            if record is not None:
                record.miss(since.revision)
        away |= streamless
        if marked := agent_ids - streamless:
            self._marked.add(key, marked)

    def _marks_of(self, change: Change) -> Marks:
        before, after = change.before, change.after
        match change.kind:
            case "server":
                return self._server_changed(_as(Server, before), _as(Server, after), change.revision)
            case "rule":
                return self._rule_changed(_as(Rule, before), _as(Rule, after))
            case "group":
                return self._group_changed(_as(Group, before), _as(Group, after))
            case _:
                # No agent enforces the others.
                return []

    def _group_changed(self, before: Group | None, after: Group | None) -> Marks:
        if after is not None:
            self._objects.know_group(after)
            if before is None:
                self._history.begin(after.id, after.members_revision)
            elif before.name != after.name:
                return self._to_all((Kind.GROUP, after.id))
            return []
        if before is not None:
            self._interest.forget_group(before.id)
            self._objects.forget_group(before.id)
            self._history.forget(before.id)
        return []

    def _rule_changed(self, before: Rule | None, after: Rule | None) -> Marks:
        if not alters_what_is_allowed(before, after):
            return []
        marks: Marks = []
        for rule in filter(None, (after, before)):
            marks += self._to_all((Kind.GROUP, rule.group_id))
            remote = rule.spec.remote_group_id
            if remote is not None:
                count = self._interest.name_remote if rule is after else self._interest.unname_remote
                marks += count(rule.group_id, remote)
        return marks

    def _server_changed(self, before: Server | None, after: Server | None, revision: int) -> Marks:
        marks: Marks = []
        if after is None:
            if before is not None:
                self._moves.end(before.key)
                for agent_id in list(self._interest.agents_of((Kind.SERVER, before.key))):
                    marks += self._interest.displace(agent_id, before.key)
                self._objects.forget_server(before.key)
        else:
            if before is not None and before.agent_id != after.agent_id:
                # The old agent is touched, whether it lets go now or later.
                marks.append((frozenset(self._holders(after)), (Kind.SERVER, after.key)))
                self._begin_move(before, after, revision)
            marks += self._place(after)
            if before is not None and before.binding_revision != after.binding_revision:
                marks += self._to_all((Kind.SERVER, after.key))
        return marks + self._members_changed(before, after, revision)

    def _members_changed(self, before: Server | None, after: Server | None, revision: int) -> Marks:
        """Note what became of the address sets of the groups that a server is or was in."""
        marks: Marks = []
        for group_id in groups_with_other_members(before, after):
            old = set(before.addresses) if before and group_id in before.group_ids else set()
            new = set(after.addresses) if after and group_id in after.group_ids else set()
            self._history.note(group_id, revision, added=new - old, removed=old - new)
            marks += self._to_all((Kind.SET, group_id))
        return marks

    def _to_all(self, key: ObjectKey) -> Marks:
        # As they are now: the next change of the same revision may take some of them out.
        return [(frozenset(self._interest.agents_of(key)), key)]

    # Placement and migration.

    def _holders(self, server: Server) -> list[str]:
        return list(self._interest.agents_of((Kind.SERVER, server.key)))

    def _agents_to_hold(self, server: Server) -> Collection[str]:
        own = (server.agent_id,) if server.agent_id else ()
        holders = self._moves.holders(server.key)
        # Hardly ever is a server on its way.
        return holders.union(own) if holders else own

    def _place(self, server: Server) -> Marks:
        """Put a server on the agents that are to have it now, and on no other."""
        wanted = self._agents_to_hold(server)
        marks: Marks = []
        for agent_id in wanted:
            marks += self._interest.place(agent_id, server.key, server.group_ids)
        for agent_id in self._holders(server):
            if agent_id not in wanted:
                marks += self._interest.displace(agent_id, server.key)
        return marks

    def _begin_move(self, before: Server, after: Server, revision: int) -> None:
        earlier = self._moves.end(after.key)
        if not after.agent_id:
            return
        left = dict(earlier.old_agent_ids) if earlier else {}
        if before.agent_id:
            left[before.agent_id] = revision
        # Only so many are remembered; who falls out lets go now.
        kept = {agent_id: left[agent_id] for agent_id in after.previous_agent_ids if agent_id in left}
        self._moves.begin(after.key, kept, after.agent_id, revision)
        for agent_id in self._moves.holders(after.key):
            record = self._roster.find(agent_id)
            if record is not None and record.channel and not record.channel.will_hold((Kind.SERVER, after.key)):
                self._moves.drop_holder(after.key, agent_id)

    def _complete_moves(self, channel: AgentChannel, now_us: int) -> None:
        """Let old agents go whose servers are in force on ``channel``'s agent now."""
        for move in self._moves.to(channel.agent_id):
            if channel.pending_since is not None and channel.pending_since <= move.revision:
                continue
            server = self._objects.find_server(move.server)
            if server is None or channel.rejected.keys().isdisjoint(self._needs_of(server)):
                self._moves.end(move.server)
                self._let_go(move, now_us)

    def _needs_of(self, server: Server) -> Iterator[ObjectKey]:
        """Yield what an agent must have in force to guard a server."""
        yield Kind.SERVER, server.key
        for group_id in server.group_ids:
            yield Kind.GROUP, group_id
            for remote in self._interest.remotes_of(group_id):
                yield Kind.SET, remote

    def _let_go(self, move: Move, now_us: int) -> None:
        awake: list[AgentChannel] = []
        for agent_id, left_revision in move.old_agent_ids.items():
            for agent_ids, key in self._interest.displace(agent_id, move.server):
                # Where it is marked already, that is since a later revision.
                self._mark(agent_ids, key, Since(left_revision, now_us), awake, set())
        for agent_id in move.old_agent_ids:
            self._roster.release_if_gone(agent_id)
        for channel in awake:
            channel.wake()

    # Streams.

    def connect(self, hello: Hello, wake: Callable[[], None], now_us: int) -> AgentChannel:
        """Open the stream of an agent. Of two that claim one id the later start wins; the other's channel ends with a GoAway."""
        known = self._roster.find(hello.agent_id)
        in_force = hello.applied_revision if is_on_history(hello, self._source) else 0
        if known is not None and known.pending_since is not None:
            in_force = min(in_force, known.pending_since - 1)
        channel = AgentChannel(
            hello,
            self._source,
            wake=wake,
            progressed=self._progressed,
            in_force_revision=in_force,
            # Of an agent that was not seen before it is not known what it rejects.
            unknown_since=1 if known is None else in_force + 1,
            rejected=known.rejected if known else None,
        )
        if known is not None and known.channel is not None:
            if (hello.boot_time_us, hello.boot_id) < (known.hello.boot_time_us, known.hello.boot_id):
                channel.end(f"{_told(known.hello)} was started later", SUPERSEDED_RECONNECT_S)
                return channel
            known.channel.end(f"{_told(hello)} has taken over", SUPERSEDED_RECONNECT_S)
            known.channel.forget_marks()
        self._drop_what_is_not_held(hello)
        record = AgentRecord(
            # What it holds, which may be thousands of objects, is kept up by the channel.
            hello=replace(hello, held={}),
            channel=channel,
            applied_revision=in_force,
            last_heard_us=now_us,
            connected_us=now_us,
            held_back=hello.held_back,
        )
        if known is not None:
            record.rejected, record.report = known.rejected, known.report
        self._roster.put(record)
        return channel

    def disconnect(self, channel: AgentChannel) -> None:
        """Note that a stream has ended. Nothing happens if another one has taken its place."""
        channel.questions.close("it lost its connection")
        record = self._roster.find(channel.agent_id)
        if record is None or record.channel is not channel:
            return
        record.behind_since = channel.pending_since
        record.rejected = channel.rejected
        channel.forget_marks()
        self._roster.end_stream(record)
        self._roster.release_if_gone(channel.agent_id)

    def heard(self, channel: AgentChannel, now_us: int, clock_us: int, report: Report | None = None) -> None:
        """Note that an agent has spoken, and what it reported. ``clock_us`` is by a clock that nobody sets."""
        record = self._roster.find(channel.agent_id)
        if record is not None and record.channel is channel:
            record.last_heard_us, record.heard_clock_us = now_us, clock_us
            record.report = report or record.report

    def end_all(self, reason: str, returns_s: Callable[[], float]) -> None:
        """End every stream with a GoAway. ``returns_s`` is asked for each agent: in how many seconds it may come back."""
        for channel in list(self._roster.channels.values()):
            channel.end(reason, returns_s())

    def _progressed(self, channel: AgentChannel, now_us: int) -> None:
        record = self._roster.find(channel.agent_id)
        if record is None or record.channel is not channel:
            return
        record.progress(channel)
        self._complete_moves(channel, now_us)
        self._roster.settle(channel.agent_id, now_us)

    def _drop_what_is_not_held(self, hello: Hello) -> None:
        """An old agent that comes back without a server does not get it again."""
        for move in self._moves.held_by(hello.agent_id):
            if (Kind.SERVER, move.server) not in hello.held:
                self._moves.drop_holder(move.server, hello.agent_id)
                self._interest.displace(hello.agent_id, move.server)

    # Questions.

    def holders_of(self, server_keys: Iterable[str]) -> set[str]:
        """Return the agents that guard one of these servers, or hold it while it moves to another."""
        return {agent_id for key in server_keys for agent_id in self._interest.agents_of((Kind.SERVER, key))}

    def find_channel(self, agent_id: str) -> AgentChannel | None:
        """Return the stream of an agent, None if it has none."""
        return self._roster.channels.get(agent_id)

    # What is known, and in force.

    def in_force(self, revision: int) -> Standing:
        """Return how it stands with a revision, which must not be beyond the state's own.

        Of a revision before the controller's start, or too long ago, every agent that guards a server or is connected counts as
        touched.
        """
        return self._roster.standing(revision)

    def is_in_force(self, revision: int) -> bool:
        """Whether nobody lags behind a revision; cheaper than ``in_force``."""
        return self._roster.is_in_force(revision)

    def watch(self, revision: int, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` when it is worth asking again whether a revision is in force, which it is not now.

        Return what ends that.
        """
        return self._roster.watch(revision, watcher)

    @property
    def commit_to_in_force(self) -> DelayCounts:
        """From the commit of each change since the start until the last agent that it touched said that it had it in force."""
        return self._roster.log.delays.counted()

    def fleet(self) -> Fleet:
        """Count the agents that guard a server or are connected. Takes time in proportion to them."""
        return self._roster.fleet()

    def agent_ids(self) -> list[str]:
        """Return, in ascending order, the agents that guard a server or have connected."""
        return self._roster.agent_ids()

    def find_status(self, agent_id: str) -> AgentStatus | None:
        """Return what is known of an agent, None if it neither guards a server nor has connected."""
        return self._roster.find_status(agent_id)


ObjectT = TypeVar("ObjectT", Group, Rule, Server)


def _as(kind: type[ObjectT], value: Object | None) -> ObjectT | None:
    """Return ``value``, which a change of this kind must hold."""
    return value if isinstance(value, kind) else None


def _leaves_unguarded(change: Change) -> bool:
    """Whether a server has no agent after a change: one that is gone by then may let its packets pass until it hears of it."""
    after = _as(Server, change.after) if change.kind == "server" else None
    return change.kind == "server" and (after is None or not after.agent_id)


def _told(hello: Hello) -> str:
    """Name a start of an agent for the other one."""
    host = f" on {hello.host}" if hello.host else ""
    return f"another start of agent {hello.agent_id} ({hello.boot_id}{host})"
