"""The flows of guarded servers, as conntrack keeps them and the rules in force judge them.

A connection between two guarded servers is two flows, one seen from each. Which rule opened a flow conntrack does not remember;
told is the rule that allows its opening packet now, or that there is none: then it is revoked, whether or not it has shown a
packet since. What passes whatever the rules say (DHCP) has no rule and is not revoked.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from secgroups.agent.effective import Opening
from secgroups.agent.errors import EnforcementError
from secgroups.agent.flow import ICMP, ICMPV6, TCP, Direction, Packet
from secgroups.agent.flow_filter import state_name
from secgroups.agent.kernel.connections import ASSURED, SEEN_REPLY, Connection, ConnectionDump, Ends, find_connection
from secgroups.agent.kernel.guards import Guards
from secgroups.agent.ruleset import Ruleset
from secgroups.agent.screening import find_essential_service
from secgroups.agent.tcp import FlowState
from secgroups.agent.tracking import NOT_KNOWN_NS, NS_PER_S, Flow, FlowKey

# As in linux/netfilter/nf_conntrack_tcp.h, in the order of their numbers; 0 is a connection that has no state yet.
_TCP_STATES = (
    FlowState.SYN_SENT,
    FlowState.SYN_SENT,
    FlowState.SYN_RECV,
    FlowState.ESTABLISHED,
    FlowState.FIN_WAIT,
    FlowState.CLOSE_WAIT,
    FlowState.LAST_ACK,
    FlowState.TIME_WAIT,
    FlowState.CLOSE,
    FlowState.SYN_SENT2,
)
# Rules that are looked at between two breaths: a few milliseconds in plain Python.
CHECKS_PER_BREATH = 2_000
_SYSCTL = Path("/proc/sys/net/netfilter")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowCounts:
    """How many flows there are by the name of their state, and how many connections the kernel has room for."""

    by_state: Mapping[str, int]
    flows_max: int


class KernelFlows:
    """Flows of the servers of ``ruleset()``, the one that the kernel enforces. ``essential`` is the switch of row 4.

    ``clock`` gives monotonic, ``wall_clock`` Unix nanoseconds.
    """

    def __init__(
        self,
        ruleset: Callable[[], Ruleset],
        *,
        essential: bool,
        clock: Callable[[], int] = time.monotonic_ns,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._ruleset = ruleset
        self.essential_services = essential
        self._clock = clock
        self._wall_clock = wall_clock
        self._guards = Guards(Ruleset())
        self._counting: asyncio.Task[FlowCounts] | None = None

    @property
    def guards(self) -> Guards:
        """Who is guarded now."""
        ruleset = self._ruleset()
        if self._guards.ruleset is not ruleset:
            self._guards = Guards(ruleset)
        return self._guards

    async def live(self, server: str = "") -> AsyncGenerator[list[Flow], None]:
        """Yield the flows of all servers, or of ``server``, in pieces of a few milliseconds of work.

        Others have their turn in between. Nothing is held but the piece: while a reader is slow, the kernel is not asked for the
        next. EnforcementError if the kernel does not tell.
        """
        guards = self.guards
        translator = self._translator(guards)
        guarded = frozenset(packed for packed, held in guards.servers.items() if server in ("", held))
        try:
            with closing(ConnectionDump()) as dump:
                while not dump.is_over:
                    flows: list[Flow] = []
                    for connection in dump.read(guarded):
                        flows += (flow for flow in translator.flows(connection) if server in ("", flow.key.server))
                        if translator.checks >= CHECKS_PER_BREATH:
                            translator.checks = 0
                            yield flows
                            flows = []
                            await asyncio.sleep(0)
                    yield flows
                    await asyncio.sleep(0)
        except OSError as error:
            raise EnforcementError(f"the kernel does not tell its connections: {error.strerror}") from None

    async def count(self) -> FlowCounts:
        """Return how many flows there are. Takes time in proportion to all connections; EnforcementError if the kernel fails.

        Who asks while it is counted is answered with that count.
        """
        if self._counting is None or self._counting.done():
            self._counting = asyncio.create_task(self._count())
        # Who goes away does not take the count from the others.
        return await asyncio.shield(self._counting)

    async def _count(self) -> FlowCounts:
        by_state: Counter[str] = Counter()
        async for flows in self.live():
            by_state.update(map(state_name, flows))
        return FlowCounts(by_state=by_state, flows_max=find_setting("max") or 0)

    def find(self, ends: Ends, server: str) -> Flow | None:
        """Return the flow of ``server`` that a packet with ``ends`` belongs to. EnforcementError if the kernel does not tell.

        It counts a packet of either direction at least: to the kernel, an error about an answer is related even if none was seen.
        """
        try:
            connection = find_connection(ends)
        except OSError as error:
            raise EnforcementError(f"the kernel does not tell its connections: {error.strerror}") from None
        if connection is None:
            return None
        connection = replace(
            connection,
            opener_packets=max(connection.opener_packets, 1),
            answerer_packets=max(connection.answerer_packets, 1),
        )
        return next((flow for flow in self._translator(self.guards).flows(connection) if flow.key.server == server), None)

    def _translator(self, guards: Guards) -> _Translator:
        wall_offset_ns = self._wall_clock() - self._clock()
        return _Translator(guards, essential=self.essential_services, clock=self._clock, wall_offset_ns=wall_offset_ns)


class _Translator:
    """Makes flows of connections; ``checks`` counts the rules looked at."""

    def __init__(self, guards: Guards, *, essential: bool, clock: Callable[[], int], wall_offset_ns: int) -> None:
        self.checks = 0
        self._guards = guards
        self._essential = essential
        self._clock = clock
        self._wall_offset_ns = wall_offset_ns

    def flows(self, connection: Connection) -> Iterator[Flow]:
        """Yield the flow of each of the ends that is guarded."""
        ends = connection.ends
        for direction, local in ((Direction.EGRESS, ends.source), (Direction.INGRESS, ends.destination)):
            server = self._guards.servers.get(local.packed)
            if server is not None:
                yield self._flow(connection, server, direction)

    def _flow(self, connection: Connection, server: str, direction: Direction) -> Flow:
        ends, now_ns = connection.ends, self._clock()
        packet = opening_packet(connection, server, direction)
        opening = Opening.of(packet)
        rules = self._guards.rules_of(server)
        checks_before = rules.checks if rules is not None else 0
        rule = rules.find(opening) if rules is not None else None
        self.checks += 1 + (rules.checks - checks_before if rules is not None else 0)
        revoked = rules is not None and rule is None and not self._is_essential(packet, server)
        here, there = (ends.source_port, ends.destination_port)
        if direction is Direction.INGRESS:
            here, there = there, here
        is_icmp = ends.protocol in (ICMP, ICMPV6)
        opened_ns = connection.opened_ns
        return Flow(
            key=FlowKey(
                server,
                ends.protocol,
                packet.local,
                ends.icmp[0] if is_icmp else here,
                packet.remote,
                ends.icmp[1] if is_icmp else there,
                direction if is_icmp else None,
            ),
            opening=opening,
            state=_state(connection),
            rule_id=rule.rule.id if rule is not None else "",
            group_id=rule.group_id if rule is not None else "",
            epoch=0,
            opened_ns=NOT_KNOWN_NS if opened_ns is None else max(0, opened_ns - self._wall_offset_ns),
            seen_ns=NOT_KNOWN_NS,
            deadline_ns=now_ns + (connection.remaining_s or 0) * NS_PER_S,
            answered=bool(connection.status & (ASSURED if ends.protocol == TCP else SEEN_REPLY)),
            revoked=revoked,
            opener_packets=connection.opener_packets,
            opener_bytes=connection.opener_bytes,
            answerer_packets=connection.answerer_packets,
            answerer_bytes=connection.answerer_bytes,
        )

    def _is_essential(self, packet: Packet, server: str) -> bool:
        addresses = self._guards.ruleset.servers[server].addresses
        return self._essential and bool(find_essential_service(packet, addresses))


def opening_packet(connection: Connection, server: str, direction: Direction) -> Packet:
    """Return the packet that opened ``connection``, as rules look at it."""
    ends = connection.ends
    return Packet(
        server=server,
        direction=direction,
        source=ends.source,
        destination=ends.destination,
        protocol=ends.protocol,
        source_port=ends.source_port,
        destination_port=ends.destination_port,
        icmp_id=ends.icmp[0],
        icmp_type=ends.icmp[1],
        icmp_code=ends.icmp[2],
    )


def _state(connection: Connection) -> FlowState:
    if connection.ends.protocol == TCP:
        return _TCP_STATES[connection.tcp_state] if connection.tcp_state < len(_TCP_STATES) else FlowState.SYN_SENT
    return FlowState.ANSWERED if connection.status & SEEN_REPLY else FlowState.UNANSWERED


def find_setting(name: str) -> int | None:
    """Return a setting of conntrack in this network namespace, None if it has no such."""
    try:
        return int((_SYSCTL / f"nf_conntrack_{name}").read_text())
    except (OSError, ValueError):
        return None
