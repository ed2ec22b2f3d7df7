"""The compiled engine: the same verdicts as the reference engine, at the speed of memory.

``_engine`` judges packets; here is what changes between them. An update is compared with what is in force, and only the difference
is carried out: one rule or one member costs the same whether there are ten of them or ten thousand.

Where it differs from the reference, within the contract:

- Of the idle answered flows of the server that holds the most, a sample of 32 is looked at.
- Flows that are over are looked for in the order of their deadlines: 32 are looked at for a packet that finds the table full, more
  if it is some time since the last one did, at most 256.
- With several shards, servers are divided among them, and so are the table and the fragments: each shard bounds its own.
- Times of opening are kept to 17 ms, those of the last packet to 1 ms; a flow's packets are counted modulo 2**40, its bytes modulo
  2**48.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secgroups.agent.compiled_rules import Rulebook
from secgroups.agent.compiled_table import ABSENT, IN_FORCE, SERVERS_MAX, WITHOUT_RULESET, CompiledTable, Guard
from secgroups.agent.compiled_tables import STATES
from secgroups.agent.compiled_tap import CompiledTap
from secgroups.agent.counters import RuleCount, Stats
from secgroups.agent.effective import EffectiveRuleset, effective_groups, effective_ruleset
from secgroups.agent.errors import BaseVersionError, EngineBrokenError, UnenforceableError
from secgroups.agent.explanation import Decision, explained
from secgroups.agent.flow import Address, Direction, Explanation, Packet, Reason
from secgroups.agent.flow_filter import FlowFilter
from secgroups.agent.judgement import grounds_without_flow, grounds_without_place
from secgroups.agent.members import Members
from secgroups.agent.preview import counting_cut, prospect
from secgroups.agent.reference import Applied
from secgroups.agent.ruleset import AddressSet, AddressSetPatch, GroupRules, Rule, Ruleset, RulesetUpdate, ServerBinding
from secgroups.agent.screening import find_essential_service, find_fault, find_rogue_service, find_source_fault
from secgroups.agent.settings import EngineSettings
from secgroups.agent.tap import TapSettings
from secgroups.agent.tracking import Flow

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# In a file: what the flows are judged against is not said anywhere.
_IN_FLUX = bytes(32)
_BROKEN = "everything is denied; start anew with the last good state"
_INGRESS_FLAG, _STATE_MASK = 0x10, 0x0F


@dataclass(slots=True)
class _HeldSet:
    """Members of a group as bytes in network order. ``value`` is what the controller knows as one object, made when asked for."""

    version: int
    members: set[bytes] | frozenset[bytes]
    value: AddressSet | None = None


@dataclass(slots=True)
class _SetChange:
    added: set[bytes] | frozenset[bytes]
    removed: set[bytes] | frozenset[bytes]
    # None: the set goes.
    held: _HeldSet | None
    version: int = 0
    # ``held`` is what is in force already, and is to be changed.
    in_place: bool = False


@dataclass(slots=True)
class _Plan:
    """An update as a difference to what is in force."""

    sets: dict[str, _SetChange] = field(default_factory=dict)
    groups: dict[str, GroupRules | None] = field(default_factory=dict)
    servers: dict[str, ServerBinding | None] = field(default_factory=dict)


class CompiledEngine:
    """Judges packets by the ruleset in force. ``decide`` and ``decide_many`` may be called by several threads at once."""

    def __init__(self, settings: EngineSettings, now_ns: int, flows: CompiledTable | None = None) -> None:
        """Start cold with an empty table, or warm with the ``flows`` of an engine that is not asked any more."""
        self._settings = settings
        if flows is None:
            flows = CompiledTable(settings, now_ns)
        else:
            if flows.owner is not None:
                flows.owner.let_go()
            flows.fit(settings, now_ns)
        flows.owner = self
        self._table = flows
        self._core = flows.core
        self._core.set_essential_services(settings.essential_services)
        self._core.begin_counting()
        self._book = Rulebook(self._core, flows.numbers)
        self._revision = 0
        self._sets: dict[str, _HeldSet] = {}
        self._groups: dict[str, GroupRules] = {}
        self._servers: dict[str, ServerBinding] = {}
        # The servers of each group, whether its rules are held or not.
        self._attached: dict[str, set[str]] = {}
        self._ruleset: Ruleset | None = None
        self._is_broken = False
        self.decide = self._core.decide
        self.decide_many = self._core.decide_many

    @property
    def ruleset(self) -> Ruleset:
        """What is in force. Raises ``EngineBrokenError``."""
        self._check()
        if self._ruleset is None:
            self._ruleset = Ruleset(
                revision=self._revision,
                sets={group_id: self._set_value(group_id) for group_id in self._sets},
                groups=dict(self._groups),
                servers=dict(self._servers),
            )
        return self._ruleset

    @property
    def flows(self) -> CompiledTable:
        """The flow table, to be looked at, or to be handed to a successor: then this engine lets go of it."""
        return self._table

    # ------------------------------------------------------------------------------------------------ changes

    def apply(self, update: RulesetUpdate, now_ns: int) -> Applied:
        """Put ``update`` in force, whole. Raises ``BaseVersionError``, and ``UnenforceableError`` for more servers than there are
        numbers; then nothing has changed. So it is with a ``MemoryError``.

        ``EngineBrokenError`` says that it ended half way: from then on everything is denied, nothing is changed any more, and
        nobody can go on with the flows.
        """
        self._check()
        plan = self._plan(update)
        removed = self._removed(update)
        self._core.mark(_IN_FLUX)
        try:
            return self._put_in_force(update, plan, removed)
        except BaseException as error:
            self._is_broken = True
            if not isinstance(error, Exception):
                raise
            reason = "memory ran out" if isinstance(error, MemoryError) else repr(error)
            raise EngineBrokenError(f"revision {update.revision} was half in force when {reason}: {_BROKEN}") from error

    def _check(self) -> None:
        if self._is_broken:
            raise EngineBrokenError(f"an update was half in force when it failed: {_BROKEN}")

    def _put_in_force(self, update: RulesetUpdate, plan: _Plan, removed: set[str]) -> Applied:
        endpoints: list[int] = []
        ended: list[Guard] = []
        self._core.lock()
        try:
            touched = self._carry_out(plan, endpoints)
            for name in removed:
                guard = self._table.guards[name]
                ended.append(guard)
                endpoints += self._end(guard)
            if plan.servers:
                self._count_servers()
            self._table.flush()
        except BaseException:
            # Before anybody can ask: half of it may allow what neither the old rules nor the new ones do.
            self._core.deny_all()
            raise
        finally:
            self._core.unlock()
        dropped = self._table.sweep(endpoints) if endpoints else 0
        for guard in ended:
            self._core.forget_fragments(guard.handle)
            self._table.drop(guard)
        self._table.flush()
        if plan.servers:
            self._table.order_names()
        self._table.judged_by = {}
        self._revision, self._ruleset = update.revision, None
        return Applied(
            revision=update.revision,
            servers_touched=frozenset(touched),
            servers_removed=frozenset(removed),
            flows_dropped=dropped,
        )

    def _plan(self, update: RulesetUpdate) -> _Plan:
        plan = _Plan()
        self._plan_sets(update, plan)
        groups: dict[str, GroupRules | None] = {new.group_id: new for new in update.groups}
        groups |= dict.fromkeys(update.removed_groups)
        servers: dict[str, ServerBinding | None] = {new.server: new for new in update.servers}
        servers |= dict.fromkeys(update.removed_servers)
        if update.snapshot:
            groups |= dict.fromkeys(self._groups.keys() - groups.keys())
            servers |= dict.fromkeys(self._servers.keys() - servers.keys())
        plan.groups = {name: new for name, new in groups.items() if new is not None or name in self._groups}
        plan.servers = {name: new for name, new in servers.items() if new is not None or name in self._servers}
        # Those that go give their numbers back only afterwards.
        guarded = len(self._table.guards) + sum(name not in self._table.guards for name in plan.servers)
        if guarded > SERVERS_MAX:
            raise UnenforceableError(f"{guarded} servers on one agent, the most that it can guard is {SERVERS_MAX}")
        return plan

    def _plan_sets(self, update: RulesetUpdate, plan: _Plan) -> None:
        for new in update.sets:
            plan.sets[new.group_id] = self._whole_set(new)
        for patch in update.set_patches:
            plan.sets[patch.group_id] = self._patched(patch, plan.sets.get(patch.group_id), fresh=update.snapshot)
        gone = set(update.removed_sets)
        if update.snapshot:
            gone |= self._sets.keys() - plan.sets.keys()
        for group_id in gone:
            plan.sets.pop(group_id, None)
            if group_id in self._sets:
                plan.sets[group_id] = _SetChange(added=frozenset(), removed=self._sets[group_id].members, held=None)

    def _whole_set(self, new: AddressSet) -> _SetChange:
        members = self._sets[new.group_id].members if new.group_id in self._sets else frozenset()
        return _SetChange(
            added=new.packed - members,
            removed=members - new.packed,
            held=_HeldSet(version=new.version, members=new.packed, value=new),
            version=new.version,
        )

    def _patched(self, patch: AddressSetPatch, planned: _SetChange | None, *, fresh: bool) -> _SetChange:
        held = self._sets.get(patch.group_id)
        version = planned.version if planned else held.version if held and not fresh else 0
        if version != patch.base_version or (planned is None and (held is None or fresh)):
            raise BaseVersionError(group_id=patch.group_id, held=version, needed=patch.base_version)
        added, removed = patch.packed
        if planned is not None and planned.held is not None:
            # Rare: the second word about a set in one update. It is taken as a whole.
            members = planned.held.members
            if planned.in_place:
                members = (members | planned.added) - planned.removed
            patched = Members.unpacked((members | added) - removed)
            return self._whole_set(AddressSet(group_id=patch.group_id, version=patch.version, members=patched))
        assert held is not None  # noqa: S101
        return _SetChange(
            added={address for address in added if address not in held.members},
            removed={address for address in removed if address in held.members},
            held=held,
            version=patch.version,
            in_place=True,
        )

    def _removed(self, update: RulesetUpdate) -> set[str]:
        """Return the servers that the table knows and that go; what a successor was not told about goes with a snapshot only."""
        after = {new.server for new in update.servers}
        if not update.snapshot:
            after |= self._servers.keys()
        after -= set(update.removed_servers)
        guarded = self._table.guards.keys()
        return (set(guarded) if update.snapshot else set(update.removed_servers) & guarded) - after

    def _carry_out(self, plan: _Plan, endpoints: list[int]) -> set[str]:
        """Change what is installed; return the servers whose verdicts can change and so got a new epoch."""
        changed = self._changed_groups(plan)
        rebound = self._rebound(plan)
        before = {name: self._signature(self._servers.get(name)) for name in rebound}
        concerned = {name for group_id in changed for name in self._attached.get(group_id, ())} | rebound
        for group_id, change in plan.sets.items():
            self._change_set(group_id, change)
        for name in rebound:
            self._leave_policy(name)
        for group_id, new in plan.groups.items():
            self._change_group(group_id, new)
        for name, binding in plan.servers.items():
            self._bind(name, binding, endpoints)
        touched = set()
        for name in concerned & self._servers.keys():
            if self._is_touched(name, before, changed, rebound):
                touched.add(name)
            self._enforce(name, anew=name in touched)
        self._book.forget_labels(self._sets)
        return touched

    def _changed_groups(self, plan: _Plan) -> set[str]:
        """Return the groups whose effective rules change: their rules, or the members of a group that one of them names."""
        changed = {group_id for group_id, new in plan.groups.items() if self._book.differs(group_id, _by_id(new))}
        for remote, change in plan.sets.items():
            if change.added or change.removed:
                changed.update(self._book.naming(remote))
        return changed

    def _rebound(self, plan: _Plan) -> set[str]:
        """Return the servers that are new, go, or whose groups, held rules or addresses may be others."""
        names = set()
        for name, new in plan.servers.items():
            old = self._servers.get(name)
            if old is None or new is None or old.addresses != new.addresses or set(old.group_ids) != set(new.group_ids):
                names.add(name)
        for group_id, group in plan.groups.items():
            if (group is None) != (group_id not in self._groups):
                names |= self._attached.get(group_id, set())
        return names

    def _signature(self, binding: ServerBinding | None) -> tuple[frozenset[Address], frozenset[str] | None] | None:
        """Return what tells, with the rules of these groups, all that a server may and may not."""
        if binding is None:
            return None
        held = self._book.has(binding.group_ids)
        return binding.addresses, self._book.with_rules(binding.group_ids) if held else None

    def _is_touched(
        self,
        name: str,
        before: dict[str, tuple[frozenset[Address], frozenset[str] | None] | None],
        changed: set[str],
        rebound: set[str],
    ) -> bool:
        guard, binding = self._table.guards[name], self._servers[name]
        if guard.inherited is not None:
            return self._effective(binding) != guard.inherited
        if name in rebound:
            after = self._signature(binding)
            if before[name] != after:
                return True
            return after is not None and after[1] is not None and not changed.isdisjoint(after[1])
        return guard.policy is not None

    def _effective(self, binding: ServerBinding) -> EffectiveRuleset:
        groups = {group_id: self._groups[group_id] for group_id in binding.group_ids if group_id in self._groups}
        named = {rule.remote for group in groups.values() for rule in group.rules if isinstance(rule.remote, str)}
        sets = {group_id: self._set_value(group_id) for group_id in named if group_id in self._sets}
        return effective_ruleset(binding, effective_groups(Ruleset(groups=groups, sets=sets), self._table.judged_by))

    def _change_set(self, group_id: str, change: _SetChange) -> None:
        self._book.change_members(group_id, change.added, change.removed)
        if change.held is None:
            del self._sets[group_id]
            return
        held = self._sets[group_id] = change.held
        if change.in_place:
            # The set is made one's own at the first patch.
            if isinstance(held.members, frozenset):
                held.members = set(held.members)
            held.members -= change.removed
            held.members |= change.added
            held.version, held.value = change.version, None

    def _change_group(self, group_id: str, new: GroupRules | None) -> None:
        if new is None:
            self._book.drop_group(group_id)
            del self._groups[group_id]
            return
        self._book.set_group(group_id, _by_id(new))
        self._groups[group_id] = new

    def _bind(self, name: str, binding: ServerBinding | None, endpoints: list[int]) -> None:
        old = self._servers.pop(name, None)
        for group_id in old.group_ids if old else ():
            attached = self._attached.get(group_id, set())
            attached.discard(name)
            if not attached:
                self._attached.pop(group_id, None)
        if binding is None:
            return
        self._servers[name] = binding
        for group_id in binding.group_ids:
            self._attached.setdefault(group_id, set()).add(name)
        endpoints += self._table.set_addresses(self._table.guard_for(name), binding.addresses)

    def _leave_policy(self, name: str) -> None:
        guard = self._table.guards.get(name)
        if guard is not None and guard.policy is not None:
            self._book.leave_policy(guard.policy)
            guard.policy = None

    def _enforce(self, name: str, *, anew: bool) -> None:
        guard, binding = self._table.guards[name], self._servers[name]
        if anew:
            guard.begin_epoch()
        guard.inherited = None
        if guard.policy is None and self._book.has(binding.group_ids):
            guard.policy = self._book.join_policy(binding.group_ids)
        standing = WITHOUT_RULESET if guard.policy is None else IN_FORCE
        policy = guard.policy.number if guard.policy else 0
        self._core.set_server(guard.number, guard.generation, standing, policy, guard.epoch)
        self._core.handles[name] = guard.handle

    def _end(self, guard: Guard) -> list[int]:
        """A server goes; return its endpoints."""
        self._core.set_server(guard.number, guard.generation, ABSENT, 0, guard.epoch)
        self._core.handles.pop(guard.name, None)
        return self._table.set_addresses(guard, frozenset())

    def _count_servers(self) -> None:
        counts = [0] * self._table.shards
        for name in self._servers:
            counts[self._table.guards[name].number % self._table.shards] += 1
        for shard, count in enumerate(counts):
            self._core.set_servers_count(shard, count)

    def let_go(self) -> None:
        """Leave the table to a successor, with what held for each server. Raises ``EngineBrokenError``."""
        self._check()
        for name, binding in self._servers.items():
            self._table.guards[name].inherited = self._effective(binding)
        for guard in self._table.guards.values():
            guard.policy = None
            self._core.set_server(guard.number, guard.generation, ABSENT, 0, guard.epoch)
        self._core.handles.clear()
        self._core.reset_rules()
        self._table.numbers.give_all()

    # ------------------------------------------------------------------------------------------------ questions

    def explain(self, packet: Packet, now_ns: int) -> Explanation:
        """Return what ``decide`` would answer now, and why. Changes nothing. Raises nothing."""
        verdict, step, number, status = self._core.explain(packet, now_ns)
        binding = self._servers.get(packet.server)
        effective = self._effective(binding) if binding is not None else None
        state = STATES.get(status & _STATE_MASK)
        decision = Decision(
            verdict=verdict,
            step=step,
            group_id=self._table.numbers.group_ids[number] if number else "",
            state=state,
            grounds=self._grounds(packet, verdict.reason, step, status),
        )
        return explained(packet, decision, self.ruleset, effective)

    def _grounds(self, packet: Packet, reason: Reason, step: int, status: int) -> str:
        if step == 3:
            return find_fault(packet) or find_source_fault(packet.source)
        if step == 4:
            own = self._servers[packet.server].addresses
            return find_rogue_service(packet) or find_essential_service(packet, own)
        if reason is Reason.INVALID_STATE and step == 9:
            opening = Direction.INGRESS if status & _INGRESS_FLAG else Direction.EGRESS
            return grounds_without_place(packet, STATES[status & _STATE_MASK], from_opener=packet.direction is opening)
        return grounds_without_flow(packet) if step == 10 else ""

    def live(self, now_ns: int, wanted: FlowFilter) -> Iterator[Flow]:
        """Yield the wanted flows that are not over, in the order of the table."""
        return self._table.live(now_ns, wanted)

    def watch(self, settings: TapSettings) -> CompiledTap:
        """Return a new tap. Raises ``TooManyTapsError``."""
        return CompiledTap(self._table, settings)

    def count_cut(self, update: RulesetUpdate, now_ns: int) -> int:
        """Return how many live flows would be cut if ``update`` were applied now; changes nothing. Raises ``BaseVersionError``."""
        *_, found = self.counting_cut(update, now_ns)
        return found

    def counting_cut(self, update: RulesetUpdate, now_ns: int) -> Iterator[int]:
        """Count as ``count_cut`` does in slices of bounded work. Raises ``BaseVersionError`` at once."""
        cut = prospect(self.ruleset, update)
        return counting_cut(cut, self._table.live_of(cut.servers, now_ns))

    def mark(self, mark: bytes) -> None:
        """Say in the table's file, if it has one, what is in force."""
        self._core.mark(mark)

    def server_handle(self, server: str) -> int:
        """Return the handle of a guarded server, 0 if it is not guarded."""
        return self._core.handles.get(server, 0)

    def rule_id(self, handle: int) -> str:
        """Return the rule that a verdict entry named by ``handle``, empty if none."""
        return self._table.numbers.rule_id(handle)

    def rules_named(self, verdicts: ReadableBuffer, known: Container[int] = ()) -> dict[int, str]:
        """Return the ids of the rule handles in verdict entries, those in ``known`` left out."""
        return {handle: self.rule_id(handle) for handle in sorted(self._core.handles_in(verdicts)) if handle not in known}

    def stats(self, now_ns: int) -> Stats:
        """Return the figures of this moment. Takes time in proportion to the flows."""
        *_, by_state = self._table.counting_states(now_ns)
        return self._stats(by_state)

    def counting_stats(self, now_ns: int) -> Iterator[Stats | None]:
        """Return the figures as ``stats`` does in slices of bounded work: yields None while it counts, last the answer."""
        by_state: Mapping[str, int] = {}
        for counted in self._table.counting_states(now_ns):
            by_state = counted
            yield None
        yield self._stats(by_state)

    def _stats(self, by_state: Mapping[str, int]) -> Stats:
        figures = self._core.figures()
        return Stats(
            revision=self._revision,
            servers=len(self._servers),
            groups=len(self._groups),
            sets=len(self._sets),
            flows=sum(by_state.values()),
            flows_by_state=by_state,
            entries=figures["entries"],
            flows_max=self._table.flows_max,
            server_flows_max=self._table.server_flows_max,
            fragments=figures["fragments"],
            fragments_max=self._table.fragments_max,
            verdicts={reason: figures["reasons"][reason] for reason in Reason if figures["reasons"][reason]},
            evicted_unanswered=figures["evicted_unanswered"],
            evicted_answered=figures["evicted_answered"],
            expired=figures["expired"],
        )

    def rule_counts(self) -> dict[str, RuleCount]:
        """Return what the rules in force have let through. Takes time in proportion to the rules."""
        rule_ids = self._table.numbers.rule_ids
        counts: dict[str, RuleCount] = {}
        for number, packets, total, flows in self._core.rule_counts():
            held = counts.get(rule_ids[number], RuleCount())
            counts[rule_ids[number]] = RuleCount(packets=held.packets + packets, bytes=held.bytes + total, flows=held.flows + flows)
        return dict(sorted(counts.items()))

    def _set_value(self, group_id: str) -> AddressSet:
        held = self._sets[group_id]
        if held.value is None:
            held.value = AddressSet(group_id=group_id, version=held.version, members=Members.unpacked(held.members))
        return held.value


def _by_id(group: GroupRules | None) -> dict[str, Rule]:
    return {rule.id: rule for rule in group.rules} if group else {}
