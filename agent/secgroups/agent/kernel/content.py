"""The rules of one side of a policy as chains and sets: one look-up for all rules that name no network, one for all that do,

and two for each remote group. The cost of a packet does not depend on how many rules and members there are.

Each look-up is written up to three times, for what stands in the place of the port: the answerer's port as conntrack has it; type
and code, for a connection that is an ICMP exchange; type and code from the packet, for ICMP that belongs to no connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from secgroups.agent.flow import ICMP, ICMPV6, Direction
from secgroups.agent.kernel.boxes import NetworkBox, PortBox
from secgroups.agent.kernel.denials import deny_judged
from secgroups.agent.kernel.policy import VERSIONS, FamilyRules, SideRules
from secgroups.agent.kernel.skeleton import (
    ADDRESS_TYPES,
    ICMP_PROTOCOLS,
    IP,
    WITHOUT_CONNECTION,
    opening,
)
from secgroups.agent.kernel.statements import (
    Command,
    Expression,
    Table,
    box_element,
    concat,
    ct,
    goto,
    header,
    jump,
    match,
    meta,
    one_of,
)

_PORT_TYPES = ("inet_service", "inet_proto")
# Always true. nft knows a type for a connection's ports only in a rule that has named a protocol before.
_ANY_PROTOCOL = match(meta("l4proto"), one_of(6, {"range": [0, 5]}, {"range": [7, 255]}))


def content(
    table: Table,
    prefix: str,
    direction: Direction,
    pass_chain: str,
    rules: SideRules,
    members: Mapping[str, Mapping[int, str]],
) -> Iterator[Command]:
    """Yield the commands for all chains and sets of ``rules``; ``members`` names the sets of members by group and IP version."""
    for version in VERSIONS:
        family = rules.family(version)
        chain = f"{prefix}-{version}"
        address = ADDRESS_TYPES[version]
        yield table.add_chain(chain)
        yield table.add_rule(chain, "checks", jump(opening(direction, version)))
        for name, boxes, group_id in _box_sets(chain, family):
            by_network = isinstance(boxes[0], NetworkBox)
            yield table.add_box_set(name, (address, *_PORT_TYPES) if by_network else _PORT_TYPES)
            yield table.add_elements(name, map(box_element, boxes))
            remotes = f"@{members[group_id][version]}" if group_id else ""
            for comment, expressions in _lookups(name, boxes, version, direction, remotes):
                yield table.add_rule(chain, comment, *expressions, goto(pass_chain))
        yield table.add_rule(chain, "nothing allows it", goto(deny_judged(direction)))


def content_names(prefix: str, rules: SideRules) -> tuple[list[str], list[str]]:
    """Return the names of all chains and of all sets that ``content`` makes, in the order in which they can be deleted."""
    chains = [f"{prefix}-{version}" for version in VERSIONS]
    sets = [name for version in VERSIONS for name, _, _ in _box_sets(f"{prefix}-{version}", rules.family(version))]
    return chains, sets


def _box_sets(chain: str, family: FamilyRules) -> Iterator[tuple[str, Sequence[PortBox | NetworkBox], str]]:
    if family.anywhere:
        yield f"{chain}-anywhere", family.anywhere, ""
    if family.networks:
        yield f"{chain}-networks", family.networks, ""
    for number, (group_id, boxes) in enumerate(family.members):
        yield f"{chain}-group{number}", boxes, group_id


def _lookups(
    name: str, boxes: Sequence[PortBox | NetworkBox], version: int, direction: Direction, remotes: str
) -> Iterator[tuple[str, tuple[Expression, ...]]]:
    ip = IP[version]
    remote = ct(f"{ip} saddr", "original" if direction is Direction.INGRESS else "reply")
    packets_remote = header(ip, "saddr" if direction is Direction.INGRESS else "daddr")
    by_network = isinstance(boxes[0], NetworkBox)

    def lookup(address: Expression, *key: Expression) -> tuple[Expression, ...]:
        wanted = match(concat(*((address,) if by_network else ()), *key), f"@{name}")
        return (match(address, remotes), wanted) if remotes else (wanted,)

    protocol = ct("protocol", "original")
    if _cover(boxes, icmp=False):
        not_icmp = match(protocol, ICMP_PROTOCOLS, "!=")
        yield "by port", (_ANY_PROTOCOL, not_icmp, *lookup(remote, ct("proto-src", "reply"), protocol))
    if _cover(boxes, icmp=True):
        icmp = match(protocol, ICMP_PROTOCOLS)
        yield "by type", (_ANY_PROTOCOL, icmp, *lookup(remote, ct("proto-dst", "original"), protocol))
        alone = (WITHOUT_CONNECTION, match(meta("l4proto"), ICMP_PROTOCOLS))
        # The first two bytes of an ICMP header are type and code, where other protocols have the source port.
        yield "by type, no connection", (*alone, *lookup(packets_remote, header("th", "sport"), meta("l4proto")))


def _cover(boxes: Sequence[PortBox | NetworkBox], *, icmp: bool) -> bool:
    """Whether a box has ICMP in it, or anything else."""
    for made in boxes:
        first, last = (made.box if isinstance(made, NetworkBox) else made).protocols
        has_icmp = first <= ICMP <= last or first <= ICMPV6 <= last
        if has_icmp if icmp else not (first == last and has_icmp):
            return True
    return False
