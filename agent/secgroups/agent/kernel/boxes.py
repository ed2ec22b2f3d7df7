"""Rules as disjoint boxes, which is what an nftables set with intervals holds: one look-up, whatever the number of rules.

A **port box** is a range of protocols times a range of ports; a **network box** is that times a range of addresses. For ICMP the
"port" is type and code as conntrack keeps them, ``type << 8 | code``; a protocol without ports has port 0. Where rules overlap,
the box belongs to the one with the lowest id, as SEMANTICS 3 asks.

Networks are nested or apart, never half over each other, so n of them cut the addresses into at most 2n ranges, and a range is
covered by at most 33 (IPv4) or 129 (IPv6) of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from ipaddress import ip_address
from itertools import pairwise

from secgroups.agent.flow import ICMP, ICMPV6, Address
from secgroups.agent.ruleset import Network, Rule

PORT_MAX = 0xFFFF
PROTOCOL_MAX = 0xFF

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PortBox:
    """Inclusive ranges; ``rule_id`` is of the rule that allows all that is in it."""

    protocols: Range
    ports: Range
    rule_id: str


@dataclass(frozen=True, slots=True)
class NetworkBox:
    """``first`` to ``last``, inclusive, times a port box."""

    first: Address
    last: Address
    box: PortBox


def port_boxes(rules: Iterable[Rule], version: int) -> tuple[PortBox, ...]:
    """Return the boxes of ``rules`` in IP ``version`` (4 or 6), whatever their remotes are."""
    by_protocol: dict[int, list[Rule]] = {}
    any_protocol = []
    for rule in rules:
        if rule.protocol is None:
            any_protocol.append(rule)
        else:
            number = ICMPV6 if rule.protocol == ICMP and version == 6 else rule.protocol
            by_protocol.setdefault(number, []).append(rule)
    boxes = []
    after = 0
    lowest = min((rule.id for rule in any_protocol), default="")
    for protocol in sorted(by_protocol):
        if lowest and after < protocol:
            boxes.append(PortBox((after, protocol - 1), (0, PORT_MAX), lowest))
        pieces = _pieces([(*_ports(rule), rule.id) for rule in (*by_protocol[protocol], *any_protocol)])
        boxes += [PortBox((protocol, protocol), ports, rule_id) for ports, rule_id in pieces]
        after = protocol + 1
    if lowest and after <= PROTOCOL_MAX:
        boxes.append(PortBox((after, PROTOCOL_MAX), (0, PORT_MAX), lowest))
    return tuple(boxes)


def network_boxes(rules: Sequence[tuple[Network, Rule]], version: int) -> tuple[NetworkBox, ...]:
    """Return the boxes of rules whose remotes are networks of IP ``version``."""
    by_network: dict[Network, list[Rule]] = {}
    for network, rule in rules:
        by_network.setdefault(network, []).append(rule)
    boxes: list[NetworkBox] = []
    for first, last, covering in _address_ranges(by_network):
        covered = port_boxes((rule for network in covering for rule in by_network[network]), version)
        boxes += [NetworkBox(_address(first, version), _address(last, version), box) for box in covered]
    return tuple(boxes)


def _address(number: int, version: int) -> Address:
    return ip_address(number.to_bytes(4 if version == 4 else 16))


def _ports(rule: Rule) -> Range:
    if rule.icmp_type is not None:
        first = rule.icmp_type << 8
        return (first, first | 0xFF) if rule.icmp_code is None else (first | rule.icmp_code, first | rule.icmp_code)
    return rule.ports or (0, PORT_MAX)


def _pieces(ranges: Iterable[tuple[int, int, str]]) -> list[tuple[Range, str]]:
    """Cut ranges (first, last, id) into pieces apart from each other, each with the lowest id that covers it."""
    ordered = sorted(ranges)
    edges = sorted({edge for first, last, _ in ordered for edge in (first, last + 1)})
    pieces: list[tuple[Range, str]] = []
    covering: list[tuple[str, int]] = []
    at = 0
    for begin, end in pairwise(edges):
        while at < len(ordered) and ordered[at][0] <= begin:
            heappush(covering, (ordered[at][2], ordered[at][1]))
            at += 1
        while covering and covering[0][1] < begin:
            heappop(covering)
        if not covering:
            continue
        rule_id = covering[0][0]
        if pieces and pieces[-1][1] == rule_id and pieces[-1][0][1] == begin - 1:
            pieces[-1] = ((pieces[-1][0][0], end - 1), rule_id)
        else:
            pieces.append(((begin, end - 1), rule_id))
    return pieces


def _address_ranges(networks: Iterable[Network]) -> list[tuple[int, int, list[Network]]]:
    """Cut the addresses into ranges that the same networks cover; those that none covers are left out."""
    ranges: list[tuple[int, int, list[Network]]] = []
    covering: list[Network] = []
    begin = 0

    def leave_until(address: int) -> None:
        nonlocal begin
        while covering and int(covering[-1].broadcast_address) < address:
            close(int(covering[-1].broadcast_address) + 1)
            covering.pop()

    def close(end: int) -> None:
        nonlocal begin
        if covering and begin < end:
            ranges.append((begin, end - 1, list(covering)))
        begin = max(begin, end)

    for network in sorted(networks, key=lambda each: (int(each.network_address), each.prefixlen)):
        start = int(network.network_address)
        leave_until(start)
        close(start)
        covering.append(network)
    leave_until(1 << 129)
    return ranges
