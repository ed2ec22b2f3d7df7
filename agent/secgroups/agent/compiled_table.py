"""The flow table of the compiled engine with the names of what its numbers mean: all that a warm restart keeps."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from secgroups.agent._engine import Core
from secgroups.agent.compiled_rules import Policy, RuleNumbers, packed
from secgroups.agent.compiled_tables import STATES, contract_tables
from secgroups.agent.effective import EffectiveGroup, EffectiveRuleset, Opening, effective_groups, effective_ruleset
from secgroups.agent.errors import ConfigError
from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, Address, Direction
from secgroups.agent.flow_file import SEED_BYTES, FlowFile
from secgroups.agent.flow_filter import EVERY_FLOW, REVOKED, FlowFilter
from secgroups.agent.flow_names import GENERATIONS
from secgroups.agent.ruleset import Ruleset, ServerBinding
from secgroups.agent.settings import EngineSettings
from secgroups.agent.tracking import NS_PER_S, Flow, FlowKey

if TYPE_CHECKING:
    from secgroups.agent.compiled import CompiledEngine

ABSENT, WITHOUT_RULESET, IN_FORCE = 0, 1, 2
# A handle has 20 bits for a server's number.
SERVERS_MAX = (1 << 20) - 1

_INGRESS_FLAG, _ANSWERED_FLAG, _REVOKED_FLAG, _STATE_MASK = 0x10, 0x20, 0x40, 0x0F
_HANDLE_INDEX_BITS = 20
_EPOCHS = 0xFFFF_FFFF
_STATE_NUMBERS = {state.value: number for number, state in STATES.items()} | {REVOKED: 16}
# What the core counts apart.
_COUNTED = {state.value: number for number, state in STATES.items()} | {REVOKED: 0}
_MAPPED = b"\0" * 10 + b"\xff\xff"


class Entry(NamedTuple):
    """A live flow as the core tells it."""

    place: int
    endpoint: int
    protocol: int
    status: int
    local_port: int
    remote_port: int
    icmp_code: int
    remote: bytes
    deadline_ns: int
    epoch: int
    rule: int
    seen_ns: int
    opened_ns: int
    opener_packets: int
    opener_bytes: int
    answerer_packets: int
    answerer_bytes: int


@dataclass(slots=True, eq=False)
class Guard:
    """One server in the core. ``binding`` is None and ``inherited`` what held before, until a successor is told about it."""

    name: str
    number: int
    generation: int
    epoch: int = 0
    endpoints: dict[Address, int] = field(default_factory=dict)
    binding: ServerBinding | None = None
    policy: Policy | None = None
    inherited: EffectiveRuleset | None = None

    @property
    def handle(self) -> int:
        return self.generation << _HANDLE_INDEX_BITS | self.number

    def begin_epoch(self) -> None:
        """Be in an epoch that the server was not in, but for one of four thousand million changes ago."""
        self.epoch = self.epoch % _EPOCHS + 1


class CompiledTable:
    """Flows and first fragments in the core, servers and endpoints by name. Belongs to one engine at a time."""

    def __init__(self, settings: EngineSettings, now_ns: int, path: Path | None = None) -> None:
        """Begin empty; with ``path`` in a file, or with what an earlier process left there.

        Raises ``ConfigError`` if the file can't be used at all. What of it is not used is told by ``refused``.
        """
        self.loose_until_ns = now_ns + settings.tcp_loose_s * NS_PER_S
        self.file = FlowFile(path, settings, self.loose_until_ns) if path else None
        self.dropped = 0
        # Made of what was inherited, until the next change: what is made of the same objects is not compared rule by rule.
        self.judged_by: dict[str, EffectiveGroup] = {}
        self.owner: CompiledEngine | None = None
        self.guards: dict[str, Guard] = {}
        self._by_number: dict[int, Guard] = {}
        self._addresses: dict[int, Address] = {}
        # The longest free first, so that a handle comes back as late as it can.
        self._free: deque[tuple[int, int]] = deque()
        self._begin(settings)
        if self.file is not None:
            self._go_on(self.file, now_ns)

    @property
    def refused(self) -> str:
        """Why the table that an earlier process left was not used, empty if it was or there was none."""
        return self.file.refused if self.file else ""

    @property
    def broken(self) -> str:
        """Why the next process will not be able to go on with this table, empty if it will or the table is in no file."""
        return self.file.broken if self.file else ""

    def _go_on(self, file: FlowFile, now_ns: int) -> None:
        """Give everything in the file the number that it had, and go on with its flows."""
        self.loose_until_ns = file.loose_until_ns
        self.core.set_loose_until(self.loose_until_ns)
        names = file.names
        self.core.grow_servers(max(names.servers, default=-1) + 1)
        for number, (generation, name) in names.servers.items():
            epoch = self.core.saved_epoch(number)
            self.guards[name] = self._by_number[number] = Guard(name=name, number=number, generation=generation, epoch=epoch)
        self._free.extend((number, 1) for number in range(max(names.servers, default=-1)) if number not in names.servers)
        self.core.keep_endpoints(names.endpoints)
        for number, (server, raw) in names.endpoints.items():
            self._addresses[number] = _address(raw)
            self._by_number[server].endpoints[self._addresses[number]] = number
        self.numbers.go_on(names.rules)
        self.dropped = self.core.keep(now_ns)
        self.order_names()

    def inherit(self, ruleset: Ruleset, mark: bytes) -> bool:
        """Take ``ruleset`` for what the flows were judged against, if ``mark`` is what was last marked; return whether it is.

        Flows are then not judged again, and fragments not forgotten, for servers that get the same rules again.
        """
        if self.file is None or self.file.is_new or self.core.saved_mark() != mark:
            return False
        self.judged_by = effective_groups(ruleset, {})
        for guard in self.guards.values():
            binding = ruleset.servers.get(guard.name)
            guard.inherited = effective_ruleset(binding, self.judged_by) if binding else None
        return True

    def _begin(self, settings: EngineSettings) -> None:
        self.flows_max, self.server_flows_max = settings.flows_max, settings.server_flows_max
        self.fragments_max, self.shards = settings.fragments_max, settings.shards
        self.core = Core(
            flows_max=settings.flows_max,
            server_flows_max=settings.server_flows_max,
            fragments_max=settings.fragments_max,
            shards=settings.shards,
            seed=self.file.seed if self.file else secrets.token_bytes(SEED_BYTES),
            tables=contract_tables(),
            file=self.file.file if self.file else -1,
        )
        self.core.set_loose_until(self.loose_until_ns)
        self.numbers = RuleNumbers(self.core, self.note)

    def note(self, *entry: object) -> None:
        """Have a change of names written to the file, if there is one."""
        if self.file is not None:
            self.file.note(*entry)

    def flush(self) -> None:
        """Write the changes of names: before a packet can meet them, and before a number can mean something else."""
        if self.file is not None:
            self.file.flush()

    def __len__(self) -> int:
        """Return how many entries are taken, by flows that are over as well."""
        return int(self.core.figures()["entries"])

    def check(self, now_ns: int) -> list[str]:
        """Return what contradicts itself in the tables, nothing if all is well. For tests."""
        return self.core.check(now_ns)

    def held_by(self, server: str) -> int:
        """Return how many entries are taken by ``server``."""
        guard = self.guards.get(server)
        return self.core.server_flows(guard.number) if guard else 0

    def guard_for(self, name: str) -> Guard:
        """Return the guard of a server, a new one if it has none."""
        guard = self.guards.get(name)
        if guard is None:
            number, generation = self._free.popleft() if self._free else (len(self._by_number), 1)
            guard = self.guards[name] = self._by_number[number] = Guard(name=name, number=number, generation=generation)
            self.core.grow_servers(number + 1)
            self.note("+s", number, generation, name)
        return guard

    def set_addresses(self, guard: Guard, addresses: frozenset[Address]) -> list[int]:
        """Give a server exactly these addresses; return the endpoints that went and are to be swept."""
        gone = [endpoint for address, endpoint in guard.endpoints.items() if address not in addresses]
        for endpoint in gone:
            self.core.remove_endpoint(endpoint)
            del guard.endpoints[self._addresses[endpoint]]
        for address in addresses - guard.endpoints.keys():
            endpoint = guard.endpoints[address] = self.core.add_endpoint(guard.number, packed(address))
            self._addresses[endpoint] = address
            self.note("+e", endpoint, guard.number, packed(address).hex())
        return gone

    def sweep(self, endpoints: list[int]) -> int:
        """Drop the flows of endpoints that went, and return how many."""
        dropped = self.core.sweep(endpoints)
        for endpoint in endpoints:
            del self._addresses[endpoint]
            self.note("-e", endpoint)
        return dropped

    def drop(self, guard: Guard) -> None:
        """Forget a server whose endpoints are swept; its number goes to another one with another handle."""
        self.core.forget_server(guard.number)
        self.note("-s", guard.number)
        del self.guards[guard.name], self._by_number[guard.number]
        self._free.append((guard.number, guard.generation % (GENERATIONS - 1) + 1))

    def name_of(self, handle: int) -> str:
        """Return the server with a handle, empty if it is not guarded any more; or what a stranger was called."""
        if not handle >> _HANDLE_INDEX_BITS:
            return self.core.strangers.get(handle, "")
        guard = self._by_number.get(handle & (1 << _HANDLE_INDEX_BITS) - 1)
        return guard.name if guard is not None and guard.handle == handle else ""

    def order_names(self) -> None:
        """Tell the core the order of the servers' names."""
        for order, name in enumerate(sorted(self.guards)):
            self.core.set_name_order(self.guards[name].number, order)

    def live(self, now_ns: int, wanted: FlowFilter = EVERY_FLOW) -> Iterator[Flow]:
        """Yield the wanted flows that are not over, in the order of the table. Verdicts may go on meanwhile."""
        server = -1
        if wanted.server:
            guard = self.guards.get(wanted.server)
            if guard is None:
                return
            server = guard.number
        state = _STATE_NUMBERS.get(wanted.state, 0)
        port = -1 if wanted.port is None else wanted.port
        for shard in range(self.shards):
            for entries in self._pages(shard, now_ns, server, state, port):
                # Before anybody else has a turn: after that numbers may mean something else.
                flows = [self._flow(entry) for entry in entries]
                yield from (flow for flow in flows if flow and self._is_guarded(flow.key) and wanted.matches(flow))

    def counting_states(self, now_ns: int) -> Iterator[dict[str, int]]:
        """Count the live flows by the names of their states, in slices: yields the counts so far, last the answer."""
        by_state: dict[str, int] = {}
        for shard in range(self.shards):
            start, is_last = 0, False
            while not is_last:
                start, found = self.core.count_states(shard, start, now_ns)
                is_last = not start
                for name, number in _COUNTED.items():
                    if found[number]:
                        by_state[name] = by_state.get(name, 0) + found[number]
                yield by_state

    def live_of(self, servers: Iterable[str], now_ns: int) -> Iterator[Flow]:
        """Yield the live flows of ``servers``."""
        names = frozenset(servers)
        return (flow for flow in self.live(now_ns) if flow.key.server in names)

    def _is_guarded(self, key: FlowKey) -> bool:
        guard = self.guards.get(key.server)
        return guard is not None and key.local in guard.endpoints

    def _flow(self, entry: Entry) -> Flow | None:
        """Return an entry as a value; None if what its numbers meant is gone by now."""
        local, guard = self._addresses.get(entry.endpoint), self._by_number.get(self.core.endpoint_server(entry.endpoint))
        rule_id = self.numbers.rule_ids.get(entry.rule)
        if local is None or guard is None or rule_id is None:
            return None
        remote = _address(entry.remote)
        direction = Direction.INGRESS if entry.status & _INGRESS_FLAG else Direction.EGRESS
        is_icmp = entry.protocol in (ICMP, ICMPV6)
        port = 0
        if entry.protocol in PROTOCOLS_WITH_PORTS:
            port = entry.local_port if direction is Direction.INGRESS else entry.remote_port
        opening = Opening(
            direction=direction,
            remote=remote,
            protocol=entry.protocol,
            port=port,
            icmp_type=entry.remote_port if is_icmp else 0,
            icmp_code=entry.icmp_code,
        )
        return Flow(
            key=FlowKey(
                guard.name,
                entry.protocol,
                local,
                entry.local_port,
                remote,
                entry.remote_port,
                direction if is_icmp else None,
            ),
            opening=opening,
            state=STATES[entry.status & _STATE_MASK],
            rule_id=rule_id,
            group_id=self.numbers.group_ids[entry.rule],
            epoch=entry.epoch,
            opened_ns=entry.opened_ns,
            seen_ns=entry.seen_ns,
            deadline_ns=entry.deadline_ns,
            answered=bool(entry.status & _ANSWERED_FLAG),
            revoked=bool(entry.status & _REVOKED_FLAG),
            opener_packets=entry.opener_packets,
            opener_bytes=entry.opener_bytes,
            answerer_packets=entry.answerer_packets,
            answerer_bytes=entry.answerer_bytes,
        )

    def fit(self, settings: EngineSettings, now_ns: int) -> None:
        """Take on the bounds of ``settings``; flows that no longer have room go: unanswered ones first, the oldest first."""
        held = (self.flows_max, self.server_flows_max, self.fragments_max, self.shards)
        if held == (settings.flows_max, settings.server_flows_max, settings.fragments_max, settings.shards):
            return
        if self.file is not None:
            raise ConfigError(f"a flow table in a file stays as it is: {held} flows, of one server, fragments and shards")
        entries = [(shard, entry) for shard in range(self.shards) for page in self._pages(shard, now_ns) for entry in page]
        entries.sort(key=lambda found: _worth(found[1]), reverse=True)
        before, numbers = self.core, self.numbers
        self._begin(settings)
        self.numbers.adopt(numbers)
        endpoints = {}
        for guard in self.guards.values():
            self.core.grow_servers(guard.number + 1)
            for address, old in guard.endpoints.items():
                guard.endpoints[address] = endpoints[old] = self.core.add_endpoint(guard.number, packed(address))
        self._addresses = {new: self._addresses[old] for old, new in endpoints.items()}
        held_by: dict[int, int] = {}
        kept: list[tuple[int, Entry]] = []
        for shard, entry in entries:
            server = before.endpoint_server(entry.endpoint)
            held_by[server] = held_by.get(server, 0) + 1
            if held_by[server] <= self.server_flows_max and len(kept) < self.flows_max:
                kept.append((shard, entry))
        # In ascending order of opening among those unanswered, for that is the order in which they go.
        for shard, entry in reversed(kept):
            self.core.adopt(before, shard, entry.place, endpoints[entry.endpoint], now_ns)
        self.core.adopt_fragments(before)

    def _pages(self, shard: int, now_ns: int, server: int = -1, state: int = 0, port: int = -1) -> Iterator[list[Entry]]:
        start = 0
        while True:
            start, entries = self.core.page(shard, start, now_ns, server, state, port)
            yield [Entry._make(entry) for entry in entries]
            if not start:
                return


def _worth(entry: Entry) -> tuple[bool, int]:
    """Return what a flow is kept by: answered before unanswered, the latest first."""
    answered = bool(entry.status & _ANSWERED_FLAG)
    return answered, entry.seen_ns if answered else entry.opened_ns


def _address(raw: bytes) -> Address:
    return IPv4Address(raw[12:]) if raw.startswith(_MAPPED) else IPv6Address(raw)
