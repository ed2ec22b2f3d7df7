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
- Counters begin anew with each engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from secgroups.agent.counters import Counters, Stats
from secgroups.agent.effective import EffectiveGroup, effective_groups, effective_ruleset
from secgroups.agent.explanation import explained
from secgroups.agent.flow import Explanation, Fragment, Packet, Verdict
from secgroups.agent.flow_filter import FlowFilter, state_name
from secgroups.agent.judgement import Judgement, judge
from secgroups.agent.ruleset import Ruleset, RulesetUpdate
from secgroups.agent.settings import EngineSettings
from secgroups.agent.table import FlowTable
from secgroups.agent.tap import ReferenceTap, Taps, TapSettings
from secgroups.agent.tracking import Flow, FlowKey

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

        ``now_ns`` is not needed here: flows are judged again when they next show a packet.
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
        return Applied(
            revision=after.revision,
            servers_touched=frozenset(touched),
            servers_removed=frozenset(removed),
            flows_dropped=dropped,
        )

    def decide(self, packet: Packet, now_ns: int) -> Verdict:
        """Return the verdict for ``packet`` and track its flow if it is allowed.

        ``now_ns`` is monotonic nanoseconds and never goes back between calls. Raises nothing.
        """
        judgement = self._judged(packet, now_ns)
        for key in judgement.victims:
            self._evict(key, now_ns)
        if judgement.flow is not None:
            if judgement.verdict.opened:
                self._table.insert(judgement.flow)
            else:
                self._table.replace(judgement.flow)
        if packet.fragment is Fragment.FIRST and judgement.step >= _FIRST_STEP_WITH_FRAGMENTS:
            epoch = self._table.guarded[packet.server].epoch
            self._table.fragments.remember(packet, judgement.verdict, group_id=judgement.group_id, epoch=epoch, now_ns=now_ns)
        self._counters.count(packet, judgement.verdict)
        self._taps.offer(packet, judgement.verdict, now_ns)
        return judgement.verdict

    def explain(self, packet: Packet, now_ns: int) -> Explanation:
        """Return what ``decide`` would answer now, and why. Changes nothing. Raises nothing."""
        judgement = self._judged(packet, now_ns)
        guarded = self._table.guarded.get(packet.server) if packet.server in self._ruleset.servers else None
        return explained(packet, judgement, self._ruleset, guarded.ruleset if guarded else None)

    def live(self, now_ns: int, wanted: FlowFilter) -> Iterator[Flow]:
        """Yield the wanted flows that are not over at ``now_ns``, server by server, in the order of their opening.

        Verdicts and updates may go on meanwhile: a flow is told as it is when it is reached.
        """
        return (flow for flow in self._table.live(now_ns, wanted.server) if wanted.matches(flow))

    def watch(self, settings: TapSettings) -> ReferenceTap:
        """Return a tap that takes the verdicts given from now on. Raises ``TooManyTapsError``."""
        return self._taps.open(settings)

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
            rules=dict(sorted(counters.rules.items())),
            evicted_unanswered=counters.evicted_unanswered,
            evicted_answered=counters.evicted_answered,
            expired=counters.expired,
        )

    def _judged(self, packet: Packet, now_ns: int) -> Judgement:
        return judge(
            packet,
            self._table,
            servers=self._ruleset.servers,
            essential=self._settings.essential_services,
            now_ns=now_ns,
        )

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
