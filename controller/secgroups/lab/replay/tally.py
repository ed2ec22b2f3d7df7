"""What a replay adds up to: a line for each flow, and totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, TCP, UDP, Action, Address, Direction, Fragment, Packet, Verdict
from secgroups.agent.tracking import find_key
from secgroups.lab.replay.packing import Single
from secgroups.lab.replay.plain import LANE_END_BYTES, LANE_START_BYTES, Lane
from secgroups.lab.replay.words import end_text, icmp_text, protocol_name

# Beyond these, flows are counted but not listed, and later fragments get a line of their own.
FLOW_LINES_MAX = 100_000
FRAGMENTED_MAX = 4_096
# When there are more, all are forgotten, and found anew by the flow that they belong to.
LANES_MAX = 262_144
PENDING_MAX = 65_536

_DIRECTIONS = {int(direction): direction for direction in Direction}

# Verdict entries as numbers, by what they say.
Verdicts = Mapping[int, Verdict]


@dataclass(slots=True)
class FlowLine:
    """The packets that belong together, whether or not the engine tracked them as a flow, as its key has them.

    ``direction`` and ``entry`` are those of the first packet. Addresses are packed. Ports are None where there are none. For ICMP,
    ``kind`` is the message in words and ``icmp_id`` its identifier, 0 if it has none.
    """

    protocol: int
    local_packed: bytes
    remote_packed: bytes
    direction: Direction
    entry: int
    verdicts: Verdicts = field(repr=False)
    local_port: int | None = None
    remote_port: int | None = None
    kind: str = ""
    icmp_id: int = 0
    # Packets by direction and verdict entry.
    outcomes: dict[tuple[Direction, int], int] = field(default_factory=dict)

    @property
    def local(self) -> Address:
        return ip_address(self.local_packed)

    @property
    def remote(self) -> Address:
        return ip_address(self.remote_packed)

    @property
    def verdict(self) -> Verdict:
        """That of the first packet."""
        return self.verdicts[self.entry]

    @property
    def opened(self) -> int:
        """How many flows of the engine the packets opened."""
        return sum(packets for (_, entry), packets in self.outcomes.items() if self.verdicts[entry].opened)

    @property
    def packets(self) -> Counter[tuple[Direction, Action]]:
        """How many packets there were, by what became of them."""
        found: Counter[tuple[Direction, Action]] = Counter()
        for (direction, entry), packets in self.outcomes.items():
            found[direction, self.verdicts[entry].action] += packets
        return found

    @property
    def reasons(self) -> Counter[str]:
        """How many packets there were, by the reasons of their verdicts."""
        found: Counter[str] = Counter()
        for (_, entry), packets in self.outcomes.items():
            found[self.verdicts[entry].reason.name] += packets
        return found

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


class Tally:
    """Adds up judged packets. ``verdicts`` knows each entry before it is counted."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        # What was counted since the lines were brought up to date: packets by what they belong to and by verdict entry.
        self._pending: Counter[tuple[Lane | Single, int]] = Counter()
        self._flows: list[FlowLine] = []
        self._unlisted = 0
        self._entries: Counter[int] = Counter()
        self._lines: dict[Hashable, FlowLine] = {}
        # None: there are too many flows for it to have a line.
        self._lanes: dict[Lane, FlowLine | None] = {}
        self._fragmented: dict[Hashable, FlowLine] = {}

    @property
    def flows(self) -> list[FlowLine]:
        """A line for each flow, in order of their first packets."""
        self._settle()
        return self._flows

    @property
    def packets_unlisted(self) -> int:
        """How many packets belong to flows that have no line."""
        self._settle()
        return self._unlisted

    @property
    def reasons(self) -> Counter[str]:
        """How many packets there were, by the reasons of their verdicts."""
        self._settle()
        found: Counter[str] = Counter()
        for entry, packets in self._entries.items():
            found[self._verdicts[entry].reason.name] += packets
        return found

    @property
    def actions(self) -> Counter[Action]:
        """How many packets there were, by what became of them."""
        self._settle()
        found: Counter[Action] = Counter()
        for entry, packets in self._entries.items():
            found[self._verdicts[entry].action] += packets
        return found

    @property
    def opened(self) -> int:
        """How many flows the engine opened."""
        self._settle()
        return sum(packets for entry, packets in self._entries.items() if self._verdicts[entry].opened)

    def count(self, lanes: list[Lane | Single], entries: Iterable[int]) -> None:
        """Add packets in order: what each belongs to, and the verdict on it."""
        # Keys are kept in the order of the first of each: so flows are listed in the order of their first packets.
        self._pending.update(zip(lanes, entries, strict=True))
        if len(self._pending) > PENDING_MAX:
            self._settle()

    def _settle(self) -> None:
        """Bring into lines what is pending."""
        if len(self._lanes) > LANES_MAX:
            self._lanes.clear()
        known, total = self._lanes, self._entries
        for (lane, entry), packets in self._pending.items():
            total[entry] += packets
            if isinstance(lane, Single):
                line, direction = self._line(lane.packet, entry), lane.packet.direction
            else:
                line = known[lane] if lane in known else self._meet(lane, entry)
                direction = _DIRECTIONS[lane[1]]
            if line is None:
                self._unlisted += packets
                continue
            outcomes, outcome = line.outcomes, (direction, entry)
            outcomes[outcome] = outcomes.get(outcome, 0) + packets
        self._pending.clear()

    def _meet(self, lane: Lane, entry: int) -> FlowLine | None:
        """Return the line of a lane that is new, or was forgotten."""
        protocol, direction = lane[0], _DIRECTIONS[lane[1]]
        middle = (len(lane) + LANE_START_BYTES - LANE_END_BYTES) // 2
        ends = (lane[LANE_START_BYTES:middle], lane[middle:-4])
        if protocol not in (TCP, UDP):
            line = self._line(_ping(lane, *map(ip_address, ends)), entry)
        else:
            ports = (int.from_bytes(lane[-4:-2]), int.from_bytes(lane[-2:]))
            if direction is Direction.INGRESS:
                ends, ports = ends[::-1], ports[::-1]
            key = (protocol, *ends, *ports)
            line = self._lines.get(key)
            if line is None and len(self._flows) < FLOW_LINES_MAX:
                line = self._lines[key] = FlowLine(protocol, *ends, direction, entry, self._verdicts, *ports)
                self._flows.append(line)
        self._lanes[lane] = line
        return line

    def _line(self, packet: Packet, entry: int) -> FlowLine | None:
        pieces = (packet.direction, packet.source, packet.destination, packet.fragment_id)
        if packet.fragment is Fragment.LATER and pieces in self._fragmented:
            return self._fragmented[pieces]
        key = _key(packet)
        line = self._lines.get(key)
        if line is None:
            if len(self._flows) >= FLOW_LINES_MAX:
                return None
            line = self._lines[key] = self._new_line(packet, entry)
            self._flows.append(line)
        if packet.fragment is Fragment.FIRST:
            # The newest take the place of the oldest.
            self._fragmented.pop(pieces, None)
            if len(self._fragmented) >= FRAGMENTED_MAX:
                del self._fragmented[next(iter(self._fragmented))]
            self._fragmented[pieces] = line
        return line

    def _new_line(self, packet: Packet, entry: int) -> FlowLine:
        line = FlowLine(
            protocol=packet.protocol,
            local_packed=packet.local.packed,
            remote_packed=packet.remote.packed,
            direction=packet.direction,
            entry=entry,
            verdicts=self._verdicts,
        )
        if packet.fragment is Fragment.LATER:
            line.kind = "later fragments"
        elif packet.protocol in PROTOCOLS_WITH_PORTS:
            ports = (packet.source_port, packet.destination_port)
            line.local_port, line.remote_port = ports if packet.direction is Direction.EGRESS else (ports[1], ports[0])
        elif packet.protocol in (ICMP, ICMPV6):
            line.kind = icmp_text(packet.protocol, packet.icmp_type, packet.icmp_code)
            line.icmp_id = packet.icmp_id
        return line


def _key(packet: Packet) -> Hashable:
    if packet.fragment is Fragment.LATER:
        return ("later", packet.direction, packet.protocol, packet.source, packet.destination, packet.fragment_id)
    # All are of one server.
    found = find_key("", packet.direction, packet)
    if found is None:
        return ("alone", packet.direction, packet.protocol, packet.source, packet.destination, packet.icmp_type, packet.icmp_code)
    if found.protocol in (TCP, UDP):
        # As a lane has it: plain packets and others meet in one line.
        return (found.protocol, found.local.packed, found.remote.packed, found.local_port, found.remote_port)
    return found


def _ping(lane: Lane, source: Address, destination: Address) -> Packet:
    """Return a packet of a lane of pings, as much of it as makes a line."""
    return Packet(
        server="",
        direction=_DIRECTIONS[lane[1]],
        source=source,
        destination=destination,
        protocol=lane[0],
        icmp_type=lane[-4],
        icmp_code=lane[-3],
        icmp_id=int.from_bytes(lane[-2:]),
    )
