"""The reference engine: all of the contract in plain Python, as plainly as it can be said.

It is the oracle for any other engine: same packets, same updates, same times, same verdicts. What it decides where the
contract is silent stands in the modules that decide it: screening (rows 3 and 4), judgement (the rest of the table), tcp and
tracking (flows), table (room), fragments; and here:

- A server whose addresses or effective rules are not what they were gets a new epoch; a new name, description or version of
  something with the same effect does not.
- A server one of whose groups is not held has no ruleset; its flows stay, and are judged again when it has one.
- Only a snapshot, or a removal by name, takes a server's flows away; a successor that has not been told about a server keeps
  its flows.
- The time during which mid-stream TCP is accepted belongs to the table: a successor goes on with what is left of it.
- Counters and handles begin anew with each engine.
- A server that went and came back has another handle than before. A rule that is gone keeps its handle while a flow names it;
  handles are cleared away when something is applied, so ask for ids before that.
- A first fragment that fits no header (see screening) is not remembered: it has no later ones.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import repeat
from typing import TYPE_CHECKING

from secgroups.agent.counters import Counters, RuleCount, Stats
from secgroups.agent.effective import EffectiveGroup, effective_groups, effective_ruleset
from secgroups.agent.explanation import Decision, explained
from secgroups.agent.flow import Explanation, Fragment, Packet, Verdict
from secgroups.agent.flow_filter import FlowFilter, state_name
from secgroups.agent.handles import Handles
from secgroups.agent.judgement import Judgement, judge
from secgroups.agent.preview import counting_cut, prospect
from secgroups.agent.records import (
    RECORD_BYTES,
    VERDICT,
    check_buffers,
    check_times,
    pack_verdict,
    unpack,
)
from secgroups.agent.ruleset import Ruleset, RulesetUpdate
from secgroups.agent.screening import fits_header
from secgroups.agent.settings import EngineSettings
from secgroups.agent.table import FlowTable
from secgroups.agent.tap import ReferenceTap, Taps, TapSettings
from secgroups.agent.tracking import Flow, FlowKey

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_FIRST_STEP_WITH_FRAGMENTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an update did. ``servers_touched`` got a new epoch, ``flows_dropped`` went with servers and addresses."""

    revision: int
    servers_touched: frozenset[str]
    servers_removed: frozenset[str]
    flows_dropped: int


class ReferenceEngine:
    """Judges packets by the ruleset in force. Not for several threads at once."""

    def __init__(self, settings: EngineSettings, now_ns: int, flows: FlowTable | None = None) -> None:
        """Start cold with an empty table, or warm with the ``flows`` of an engine that is not asked any more."""
        self._settings = settings
        if flows is not None:
            flows.fit(settings, now_ns)
        self._table = FlowTable(settings, now_ns) if flows is None else flows
        self._ruleset = Ruleset()
        self._groups: dict[str, EffectiveGroup] = {}
        self._counters = Counters()
        self._server_handles = Handles()
        self._rule_handles = Handles()
        self._taps = Taps()

    @property
    def ruleset(self) -> Ruleset:
        """What is in force."""
        return self._ruleset

    @property
    def flows(self) -> FlowTable:
        """The flow table, to be looked at, or to be handed to a successor."""
        return self._table

    def apply(self, update: RulesetUpdate, now_ns: int) -> Applied:
        """Put ``update`` in force, whole. Raises ``BaseVersionError``, and then nothing has changed.

        Flows are not judged here: they are when they next show a packet.
        """
        before, after = self._ruleset, self._ruleset.apply(update)
        groups = effective_groups(after, self._groups)
        held = self._table.guarded.keys()
        removed = (held if update.snapshot else held & set(update.removed_servers)) - after.servers.keys()
        dropped = sum(self._table.drop_server(server) for server in removed)
        touched = set()
        for server, binding in after.servers.items():
            if self._table.guard(server, effective_ruleset(binding, groups)):
                touched.add(server)
                dropped += self._table.drop_addresses(server, binding.addresses)
        self._counters.forget(_rule_ids(before) - _rule_ids(after))
        self._ruleset, self._groups = after, groups
        self._clear_handles(now_ns)
        return Applied(
            revision=after.revision,
            servers_touched=frozenset(touched),
            servers_removed=frozenset(removed),
            flows_dropped=dropped,
        )

    def decide(self, packet: Packet | bytes, now_ns: int) -> Verdict:
        """Return the verdict for ``packet``, or for a record, and track its flow if it is allowed.

        ``now_ns`` is monotonic nanoseconds and never goes back between calls. Raises nothing.
        """
        if isinstance(packet, bytes):
            if len(packet) != RECORD_BYTES:
                raise TypeError(f"decide takes a Packet or a record of {RECORD_BYTES} bytes, not {len(packet)} bytes")
            packet = unpack(packet, b"", self._server_handles.name)
        return self._decided(packet, now_ns).verdict

    def mark(self, mark: bytes) -> None:
        """Nothing: the table goes with the process."""

    def server_handle(self, server: str) -> int:
        """Return the handle of a guarded server, 0 if it is not guarded."""
        return self._server_handles.handle(server) if server in self._ruleset.servers else 0

    def rule_id(self, handle: int) -> str:
        """Return the rule that a verdict entry named by ``handle``, empty if none."""
        return self._rule_handles.name(handle)

    def decide_many(
        self,
        records: ReadableBuffer,
        now_ns: int,
        verdicts: WriteableBuffer,
        quotes: ReadableBuffer = b"",
        times: ReadableBuffer | None = None,
    ) -> None:
        """Decide about every record, in order, and write its verdict entry. ValueError if the buffers do not fit."""
        count = check_buffers(records, verdicts, quotes)
        moments = repeat(now_ns, count) if times is None else check_times(times, now_ns, count)
        packed, quoted = memoryview(records).tobytes(), memoryview(quotes).tobytes()
        entries = bytearray()
        for at, moment_ns in zip(range(0, count * RECORD_BYTES, RECORD_BYTES), moments, strict=True):
            packet = unpack(packed[at : at + RECORD_BYTES], quoted, self._server_handles.name)
            judgement = self._decided(packet, moment_ns)
            rule_id = judgement.verdict.rule_id
            entries += pack_verdict(judgement.verdict, judgement.step, self._rule_handles.handle(rule_id) if rule_id else 0)
        # Writes into buffers of any item type, which slices of a memoryview do not.
        BytesIO(entries).readinto(verdicts)

    def rules_named(self, verdicts: ReadableBuffer, known: Container[int] = ()) -> dict[int, str]:
        """Return the ids of the rule handles in verdict entries, those in ``known`` left out."""
        handles = {handle for *_, handle in VERDICT.iter_unpack(memoryview(verdicts).tobytes())}
        return {handle: self.rule_id(handle) for handle in sorted(handles) if handle and handle not in known}

    def _decided(self, packet: Packet, now_ns: int) -> Judgement:
        judgement = self._judged(packet, now_ns)
        for key in judgement.victims:
            self._evict(key, now_ns)
        if judgement.flow is not None:
            if judgement.verdict.opened:
                self._table.insert(judgement.flow)
            else:
                self._table.replace(judgement.flow)
        if packet.fragment is Fragment.FIRST and judgement.step >= _FIRST_STEP_WITH_FRAGMENTS and fits_header(packet):
            epoch = self._table.guarded[packet.server].epoch
            self._table.fragments.remember(packet, judgement.verdict, group_id=judgement.group_id, epoch=epoch, now_ns=now_ns)
        self._counters.count(packet, judgement.verdict)
        self._taps.offer(packet, judgement.verdict, now_ns)
        return judgement

    def explain(self, packet: Packet, now_ns: int) -> Explanation:
        """Return what ``decide`` would answer now, and why. Changes nothing. Raises nothing."""
        judgement = self._judged(packet, now_ns)
        guarded = self._table.guarded.get(packet.server) if packet.server in self._ruleset.servers else None
        decision = Decision(
            verdict=judgement.verdict,
            step=judgement.step,
            group_id=judgement.group_id,
            state=judgement.flow.state if judgement.flow else None,
            grounds=judgement.grounds,
        )
        return explained(packet, decision, self._ruleset, guarded.ruleset if guarded else None)

    def live(self, now_ns: int, wanted: FlowFilter) -> Iterator[Flow]:
        """Yield the wanted flows that are not over at ``now_ns``, server by server, in the order of their opening.

        Verdicts and updates may go on meanwhile: a flow is told as it is when it is reached.
        """
        return (flow for flow in self._table.live(now_ns, wanted.server) if wanted.matches(flow))

    def watch(self, settings: TapSettings) -> ReferenceTap:
        """Return a tap that takes the verdicts given from now on. Raises ``TooManyTapsError``."""
        return self._taps.open(settings)

    def count_cut(self, update: RulesetUpdate, now_ns: int) -> int:
        """Return how many live flows would be cut if ``update`` were applied now; changes nothing. Raises ``BaseVersionError``."""
        *_, found = self.counting_cut(update, now_ns)
        return found

    def counting_cut(self, update: RulesetUpdate, now_ns: int) -> Iterator[int]:
        """Count as ``count_cut`` does in slices of bounded work: yields the count so far, last the answer.

        ``apply`` and ``decide`` may be called in between. Raises ``BaseVersionError`` at once.
        """
        cut = prospect(self._ruleset, update)
        return counting_cut(cut, self._table.live_of(cut.servers, now_ns))

    def stats(self, now_ns: int) -> Stats:
        """Return the figures of this moment. Takes time in proportion to the flows."""
        by_state: dict[str, int] = {}
        for flow in self._table.live(now_ns):
            name = state_name(flow)
            by_state[name] = by_state.get(name, 0) + 1
        counters = self._counters
        return Stats(
            revision=self._ruleset.revision,
            servers=len(self._ruleset.servers),
            groups=len(self._ruleset.groups),
            sets=len(self._ruleset.sets),
            flows=sum(by_state.values()),
            flows_by_state=by_state,
            entries=len(self._table),
            flows_max=self._table.flows_max,
            server_flows_max=self._table.server_flows_max,
            fragments=len(self._table.fragments),
            fragments_max=self._table.fragments.fragments_max,
            verdicts=dict(counters.verdicts),
            evicted_unanswered=counters.evicted_unanswered,
            evicted_answered=counters.evicted_answered,
            expired=counters.expired,
        )

    def counting_stats(self, now_ns: int) -> Iterator[Stats | None]:
        """Return the figures as ``stats`` does. This engine is for one thread, and counts in one piece."""
        yield self.stats(now_ns)

    def rule_counts(self) -> dict[str, RuleCount]:
        """Return what the rules in force have let through."""
        return dict(sorted(self._counters.rules.items()))

    def _judged(self, packet: Packet, now_ns: int) -> Judgement:
        return judge(
            packet,
            self._table,
            servers=self._ruleset.servers,
            essential=self._settings.essential_services,
            now_ns=now_ns,
        )

    def _clear_handles(self, now_ns: int) -> None:
        """Drop the handles of servers that are not guarded and of rules that are neither in force nor named by a flow."""
        self._server_handles.drop_unless(self._ruleset.servers.__contains__)
        if len(self._rule_handles):
            named = _rule_ids(self._ruleset) | {flow.rule_id for flow in self._table.live(now_ns)}
            self._rule_handles.drop_unless(named.__contains__)

    def _evict(self, key: FlowKey, now_ns: int) -> None:
        flow = self._table.find(key, now_ns)
        if flow is None:
            self._counters.expired += 1
        elif flow.answered:
            self._counters.evicted_answered += 1
        else:
            self._counters.evicted_unanswered += 1
        self._table.drop(key)


def _rule_ids(ruleset: Ruleset) -> set[str]:
    return {rule.id for group in ruleset.groups.values() for rule in group.rules}
