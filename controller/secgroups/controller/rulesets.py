"""What holds for a server, from the state alone: its effective ruleset, and whether policy lets a new flow pass.

``explain_flow`` judges as an agent judges the opening packet of a flow, with every verdict that follows from the stored state and
the question. What else an agent knows does not count here: its live flows, its full table, its switch for essential services.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from secgroups.controller.errors import InvalidError, NotFoundError
from secgroups.controller.model import (
    ICMP,
    PORT_MAX,
    PROTOCOLS_WITH_PORTS,
    Address,
    AnywhereRemote,
    Direction,
    Group,
    GroupRemote,
    Rule,
    RuleSpec,
    Server,
    protocol_name,
    rule_text,
)
from secgroups.controller.state import State

NEAREST_MAX = 5

# Nearest first: a wrong remote or port is a slip of policy, another protocol hardly the same wish.
_FIELDS = {
    "remote": "remote does not match",
    "ports": "port does not match",
    "icmp_code": "ICMP code does not match",
    "icmp_type": "ICMP type does not match",
    "protocol": "protocol does not match",
}
_NEARNESS = {name: rank for rank, name in enumerate(_FIELDS)}

_ECHO_REQUEST = {4: 8, 6: 128}
# Types by family: what only answers something, and what is about another packet (RFC 792; RFC 4443, section 2.1).
_ICMP_REPLIES = {4: frozenset({0, 14, 16, 18}), 6: frozenset({129, 140})}
_ICMP_ERRORS = {4: frozenset({3, 4, 5, 11, 12}), 6: frozenset(range(128))}
_ROUTER_ADVERTISEMENT = 134
_BROADCAST = IPv4Address("255.255.255.255")


class Reason(IntEnum):
    """Why a flow may be opened or not. The numbers are those of ``secgroups.v1.Reason``."""

    NEW = 1
    INVALID_PACKET = 18
    ROGUE_SERVICE = 19
    INVALID_STATE = 23
    NO_RULE = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveRule:
    """A rule in force at a server, with the group it came from and, if its remote is one, that group."""

    rule: Rule
    group: Group
    remote_group: Group | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedGroup:
    """A remote group and the addresses of its members, in ascending order, IPv4 first."""

    group: Group
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveRuleset:
    """Everything that a server allows at ``revision``: rules in ascending order of id, remote groups likewise."""

    server: Server
    rules: tuple[EffectiveRule, ...]
    remote_groups: tuple[ResolvedGroup, ...]
    revision: int


def effective_ruleset(state: State, project: str, server_id: str) -> EffectiveRuleset:
    """Return what holds for a server. NotFoundError if the project has no such server."""
    server = get_server(state, project, server_id)
    rules = tuple(sorted(_rules_of(state, server), key=lambda found: found.rule.id))
    remotes = {found.remote_group.id: found.remote_group for found in rules if found.remote_group is not None}
    resolved = (
        ResolvedGroup(group=group, addresses=tuple(sorted(state.members(group.id), key=_address_order)))
        for _, group in sorted(remotes.items())
    )
    return EffectiveRuleset(server=server, rules=rules, remote_groups=tuple(resolved), revision=state.revision)


def get_server(state: State, project: str, server_id: str) -> Server:
    """Return a server of the project. NotFoundError if there is none."""
    server = state.find_server(project, server_id)
    if server is None:
        raise NotFoundError("server", server_id)
    return server


def _address_order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _rules_of(state: State, server: Server) -> Iterator[EffectiveRule]:
    for group in _groups_of(state, server):
        for rule in state.rules_of_group(group.id):
            remote_id = rule.spec.remote_group_id
            remote = state.find_group(server.project, remote_id) if remote_id else None
            yield EffectiveRule(rule=rule, group=group, remote_group=remote)


def _groups_of(state: State, server: Server) -> Iterator[Group]:
    """Yield the groups of a server; the store has no attachment without a group."""
    return (group for group_id in server.group_ids if (group := state.find_group(server.project, group_id)))


# Flows.


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a flow: a server with the address to be used (None: the first that fits), or an address alone."""

    server_id: str = ""
    address: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowQuestion:
    """The opening packet of a flow. ``port`` is its destination port, 0 where the protocol has none.

    ``protocol`` is an IANA number. ICMP stands for ICMPv6 on IPv6; its type is an echo request and its code 0 unless given.
    """

    project: str
    source: End
    destination: End
    protocol: int
    port: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None

    def __post_init__(self) -> None:
        """InvalidError naming the field, as in ``secgroups.v1.ExplainFlowRequest``, for what no packet has."""
        if not 0 <= self.protocol <= 255:
            raise InvalidError("protocol_number", f"is {self.protocol}, must be 0 to 255")
        name = protocol_name(self.protocol)
        if self.protocol in PROTOCOLS_WITH_PORTS:
            if not 1 <= self.port <= PORT_MAX:
                raise InvalidError("port", f"is {self.port}, must be 1 to {PORT_MAX} for {name}")
        elif self.port:
            raise InvalidError("port", f"only TCP, UDP and SCTP have ports, {name} has none: leave it out")
        for field, value in (("icmp_type", self.icmp_type), ("icmp_code", self.icmp_code)):
            if value is None:
                continue
            if self.protocol != ICMP:
                raise InvalidError(field, f"only ICMP has it, {name} has not: leave it out")
            if not 0 <= value <= 255:
                raise InvalidError(field, f"is {value}, must be 0 to 255")


@dataclass(frozen=True, slots=True, kw_only=True)
class NearMiss:
    """A rule that failed in exactly one field, and that in words."""

    rule: Rule
    failed: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowJudgement:
    """What one server makes of a flow. ``rule`` and ``group`` are those that allow it; ``nearest`` is filled if none does."""

    server: Server
    direction: Direction
    reason: Reason
    rule: Rule | None = None
    group: Group | None = None
    nearest: tuple[NearMiss, ...] = ()
    text: str = ""

    @property
    def allowed(self) -> bool:
        return self.reason is Reason.NEW


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowExplanation:
    """Both judgements: egress of the source, then ingress of the destination, where these are servers."""

    judgements: tuple[FlowJudgement, ...]
    revision: int

    @property
    def allowed(self) -> bool:
        return all(judgement.allowed for judgement in self.judgements)


def explain_flow(state: State, question: FlowQuestion) -> FlowExplanation:
    """Return what policy says of a flow.

    InvalidError if neither end is a server or the ends have no family in common, NotFoundError for a server that is not there.
    """
    source, destination = _resolved(state, question)
    judgements = []
    if source.server is not None:
        judgements.append(_judge(state, question, source.server, Direction.EGRESS, source.address, destination.address))
    if destination.server is not None:
        judgements.append(_judge(state, question, destination.server, Direction.INGRESS, source.address, destination.address))
    return FlowExplanation(judgements=tuple(judgements), revision=state.revision)


@dataclass(frozen=True, slots=True)
class _Party:
    server: Server | None
    address: Address


def _resolved(state: State, question: FlowQuestion) -> tuple[_Party, _Party]:
    """Return both ends with one address each: the first of the source whose family the destination has too."""
    source, destination = (
        _candidates(state, question.project, end, field)
        for end, field in ((question.source, "source"), (question.destination, "destination"))
    )
    if source[0].server is None and destination[0].server is None:
        raise InvalidError("source", "is no server of the project and neither is the destination: at least one end must be one")
    for one in source:
        for other in destination:
            if one.address.version == other.address.version:
                return one, other
    raise InvalidError(
        "destination", f"source and destination have no address family in common: {_shown(source)} and {_shown(destination)}"
    )


def _candidates(state: State, project: str, end: End, field: str) -> list[_Party]:
    if not end.server_id:
        if end.address is None:
            raise InvalidError(field, "must be given: a server_id or an address")
        return [_Party(state.server_of_address(project, end.address), end.address)]
    server = get_server(state, project, end.server_id)
    if end.address is None:
        return [_Party(server, address) for address in server.addresses]
    if end.address not in server.addresses:
        raise InvalidError(f"{field}.server_address", f"{end.address} is not an address of server {server.id}")
    return [_Party(server, end.address)]


def _shown(parties: list[_Party]) -> str:
    return ", ".join(str(party.address) for party in parties)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    """What rules look at: the packet that opens the flow, seen from a server."""

    direction: Direction
    remote: Address
    remote_group_ids: tuple[str, ...]
    protocol: int
    port: int
    icmp_type: int
    icmp_code: int


def _judge(
    state: State, question: FlowQuestion, server: Server, direction: Direction, source: Address, destination: Address
) -> FlowJudgement:
    icmp_type = question.icmp_type
    if question.protocol == ICMP and icmp_type is None:
        icmp_type = _ECHO_REQUEST[source.version]
    verdict = _screened(direction, source, icmp_type)
    if verdict is not None:
        reason, text = verdict
        return FlowJudgement(server=server, direction=direction, reason=reason, text=text)
    remote = destination if direction is Direction.EGRESS else source
    owner = state.server_of_address(server.project, remote)
    opening = _Opening(
        direction=direction,
        remote=remote,
        remote_group_ids=owner.group_ids if owner else (),
        protocol=question.protocol,
        port=question.port,
        icmp_type=icmp_type or 0,
        icmp_code=question.icmp_code or 0,
    )
    return _by_rules(state, server, opening)


def _screened(direction: Direction, source: Address, icmp_type: int | None) -> tuple[Reason, str] | None:
    """Return what is denied whatever the rules say. ``icmp_type`` is None where the protocol is another."""
    if icmp_type is not None and icmp_type in _ICMP_ERRORS[source.version]:
        return Reason.INVALID_PACKET, f"ICMP type {icmp_type} is an error about another packet and opens no flow"
    if direction is Direction.EGRESS and source.version == 6 and icmp_type == _ROUTER_ADVERTISEMENT:
        return Reason.ROGUE_SERVICE, "a server may not act as a router"
    if source.is_loopback or source.is_unspecified or source.is_multicast or source == _BROADCAST:
        return Reason.INVALID_PACKET, f"impossible packet: nothing comes from {source}"
    if icmp_type is not None and icmp_type in _ICMP_REPLIES[source.version]:
        return Reason.INVALID_STATE, f"ICMP type {icmp_type} is a reply and opens no flow"
    return None


def _by_rules(state: State, server: Server, opening: _Opening) -> FlowJudgement:
    misses: list[tuple[int, str, EffectiveRule, str]] = []
    best: EffectiveRule | None = None
    for found in _rules_of(state, server):
        if found.rule.spec.direction is not opening.direction:
            continue
        failures = list(_failures(found.rule.spec, opening))
        if not failures:
            if best is None or found.rule.id < best.rule.id:
                best = found
        elif len(failures) == 1:
            misses.append((_NEARNESS[failures[0]], found.rule.id, found, failures[0]))
    if best is not None:
        return FlowJudgement(
            server=server,
            direction=opening.direction,
            reason=Reason.NEW,
            rule=best.rule,
            group=best.group,
            text=f"allowed by {describe_rule(best)}",
        )
    misses.sort(key=lambda miss: miss[:2])
    nearest = (
        NearMiss(rule=found.rule, failed=failed, text=f"{describe_rule(found)}: {_FIELDS[failed]}")
        for _, _, found, failed in misses[:NEAREST_MAX]
    )
    names = ", ".join(group.name for group in _groups_of(state, server))
    return FlowJudgement(
        server=server,
        direction=opening.direction,
        reason=Reason.NO_RULE,
        nearest=tuple(nearest),
        text=f"no {opening.direction.name.lower()} rule of {names} allows {_opening_text(opening)}",
    )


def _failures(spec: RuleSpec, opening: _Opening) -> Iterator[str]:
    """Yield the fields, direction aside, in which ``opening`` is not what the rule allows."""
    is_icmp = opening.protocol == ICMP
    if spec.protocol is not None and spec.protocol != opening.protocol:
        yield "protocol"
    if spec.ports is not None and not (opening.protocol in PROTOCOLS_WITH_PORTS and spec.ports[0] <= opening.port <= spec.ports[1]):
        yield "ports"
    if spec.icmp_type is not None and not (is_icmp and spec.icmp_type == opening.icmp_type):
        yield "icmp_type"
    if spec.icmp_code is not None and not (is_icmp and spec.icmp_code == opening.icmp_code):
        yield "icmp_code"
    if not _covers(spec, opening):
        yield "remote"


def _covers(spec: RuleSpec, opening: _Opening) -> bool:
    if isinstance(spec.remote, AnywhereRemote):
        return True
    if isinstance(spec.remote, GroupRemote):
        return spec.remote.group_id in opening.remote_group_ids
    return opening.remote in spec.remote


def describe_rule(found: EffectiveRule) -> str:
    """Return a rule as people say it: ``ingress TCP 22 from 203.0.113.0/24 of web-servers``."""
    remote_group = found.remote_group.name if found.remote_group else None
    return f"{rule_text(found.rule.spec, remote_group)} of {found.group.name}"


def _opening_text(opening: _Opening) -> str:
    what = protocol_name(opening.protocol)
    if opening.protocol in PROTOCOLS_WITH_PORTS:
        what += f" {opening.port}"
    elif opening.protocol == ICMP:
        what += f" type {opening.icmp_type} code {opening.icmp_code}"
    return f"{what} {'from' if opening.direction is Direction.INGRESS else 'to'} {opening.remote}"
