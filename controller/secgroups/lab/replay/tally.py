"""What a replay adds up to: a line for each flow, and totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, Action, Address, Direction, Fragment, Packet, Verdict
from secgroups.agent.tracking import find_key
from secgroups.lab.replay.words import end_text, icmp_text, protocol_name

# Beyond these, flows are counted but not listed, and later fragments get a line of their own.
FLOW_LINES_MAX = 100_000
FRAGMENTED_MAX = 4_096


@dataclass(slots=True, kw_only=True)
class FlowLine:
    """The packets that belong together, whether or not the engine tracked them as a flow, as its key has them.

    ``direction`` and ``verdict`` are those of the first packet. Ports are None where there are none. For ICMP, ``kind`` is the
    message in words and ``icmp_id`` its identifier, 0 if it has none.
    """

    protocol: int
    local: Address
    remote: Address
    direction: Direction
    verdict: Verdict
    local_port: int | None = None
    remote_port: int | None = None
    kind: str = ""
    icmp_id: int = 0
    opened: int = 0
    packets: Counter[tuple[Direction, Action]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def text(self) -> str:
        """The flow in words, the side that spoke first on the left."""
        ends = [end_text(self.local, self.local_port), end_text(self.remote, self.remote_port)]
        if self.direction is Direction.INGRESS:
            ends.reverse()
        words = f"{protocol_name(self.protocol)} {ends[0]} > {ends[1]}"
        if self.kind:
            words += f" {self.kind}"
        return f"{words} id {self.icmp_id}" if self.icmp_id else words

    def count(self, packet: Packet, verdict: Verdict) -> None:
        """Add one packet."""
        self.packets[packet.direction, verdict.action] += 1
        self.reasons[verdict.reason.name] += 1
        self.opened += verdict.opened


class Tally:
    """Adds up judged packets."""

    def __init__(self) -> None:
        self.flows: list[FlowLine] = []
        self.reasons: Counter[str] = Counter()
        self.actions: Counter[Action] = Counter()
        self.opened = 0
        self.packets_unlisted = 0
        self._lines: dict[Hashable, FlowLine] = {}
        self._fragmented: dict[Hashable, FlowLine] = {}

    def count(self, packet: Packet, verdict: Verdict) -> None:
        """Add one packet and what became of it."""
        self.reasons[verdict.reason.name] += 1
        self.actions[verdict.action] += 1
        self.opened += verdict.opened
        line = self._line(packet, verdict)
        if line is None:
            self.packets_unlisted += 1
        else:
            line.count(packet, verdict)

    def _line(self, packet: Packet, verdict: Verdict) -> FlowLine | None:
        pieces = (packet.direction, packet.source, packet.destination, packet.fragment_id)
        if packet.fragment is Fragment.LATER and pieces in self._fragmented:
            return self._fragmented[pieces]
        key = _key(packet)
        line = self._lines.get(key)
        if line is None:
            if len(self.flows) >= FLOW_LINES_MAX:
                return None
            line = self._lines[key] = _new_line(packet, verdict)
            self.flows.append(line)
        if packet.fragment is Fragment.FIRST:
            # The newest take the place of the oldest.
            self._fragmented.pop(pieces, None)
            if len(self._fragmented) >= FRAGMENTED_MAX:
                del self._fragmented[next(iter(self._fragmented))]
            self._fragmented[pieces] = line
        return line


def _key(packet: Packet) -> Hashable:
    if packet.fragment is Fragment.LATER:
        return ("later", packet.direction, packet.protocol, packet.source, packet.destination, packet.fragment_id)
    found = find_key(packet.server, packet.direction, packet)
    if found is not None:
        return found
    return ("alone", packet.direction, packet.protocol, packet.source, packet.destination, packet.icmp_type, packet.icmp_code)


def _new_line(packet: Packet, verdict: Verdict) -> FlowLine:
    line = FlowLine(protocol=packet.protocol, local=packet.local, remote=packet.remote, direction=packet.direction, verdict=verdict)
    if packet.fragment is Fragment.LATER:
        line.kind = "later fragments"
    elif packet.protocol in PROTOCOLS_WITH_PORTS:
        ports = (packet.source_port, packet.destination_port)
        line.local_port, line.remote_port = ports if packet.direction is Direction.EGRESS else (ports[1], ports[0])
    elif packet.protocol in (ICMP, ICMPV6):
        line.kind = icmp_text(packet.protocol, packet.icmp_type, packet.icmp_code)
        line.icmp_id = packet.icmp_id
    return line
