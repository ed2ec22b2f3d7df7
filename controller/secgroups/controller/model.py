"""Groups, rules and servers as values that are valid by construction: what can't be in force can't exist.

``RuleSpec`` is always in canonical form, so two that are equal but for the description are duplicates. Nothing here knows where the
objects are kept or who asks for them. Times are microseconds since the Unix epoch (``_us``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from secgroups.controller.errors import InvalidError
from secgroups.controller.limits import LimitOverrides
from secgroups.controller.trust.kept import AgentCertificate, AgentRevocation, Token

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NAME_CHARACTERS_MAX = 128
DESCRIPTION_CHARACTERS_MAX = 512
PORT_MAX = 65_535
DEFAULT_GROUP = "default"

# IANA protocol numbers with a meaning of their own. ICMP stands for ICMPv6 (58) too.
ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58
SCTP = 132
PROTOCOLS_WITH_PORTS = frozenset({TCP, UDP, SCTP})
PROTOCOL_NAMES = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}

ANY_IPV4 = IPv4Network("0.0.0.0/0")
ANY_IPV6 = IPv6Network("::/0")


class Direction(IntEnum):
    """Seen from the server. The numbers are those of ``secgroups.v1.Direction``."""

    INGRESS = 1
    EGRESS = 2


@dataclass(frozen=True, slots=True)
class GroupRemote:
    """The addresses of the servers that are attached to a group now."""

    group_id: str


@dataclass(frozen=True, slots=True)
class AnywhereRemote:
    """Every address of both families."""


Remote = Network | GroupRemote | AnywhereRemote
ANYWHERE = AnywhereRemote()


def check_name(value: str, field: str, *, characters_max: int = NAME_CHARACTERS_MAX) -> str:
    """Return ``value`` if it is a name. InvalidError naming ``field`` otherwise."""
    if not value:
        raise InvalidError(field, f"must not be empty; give 1 to {characters_max} printable characters")
    if len(value) > characters_max:
        raise InvalidError(field, f"has {len(value)} characters, the most allowed is {characters_max}")
    if not value.isprintable():
        raise InvalidError(field, "has a character that is not printable")
    if "/" in value:
        raise InvalidError(field, "must not contain a slash")
    if value != value.strip():
        raise InvalidError(field, "must not begin or end with a blank")
    return value


def check_description(value: str, field: str = "description") -> str:
    """Return ``value`` if it is short enough. InvalidError naming ``field`` otherwise."""
    if len(value) > DESCRIPTION_CHARACTERS_MAX:
        raise InvalidError(field, f"has {len(value)} characters, the most allowed is {DESCRIPTION_CHARACTERS_MAX}")
    try:
        # A lone surrogate can't be stored or sent.
        value.encode()
    except UnicodeEncodeError:
        raise InvalidError(field, "is not valid Unicode") from None
    return value


def is_default_name(name: str) -> bool:
    """True for every spelling of ``default``."""
    return name.casefold() == DEFAULT_GROUP


def parse_address(text: str, field: str) -> Address:
    """Return the address that ``text`` spells. InvalidError naming ``field`` for anything else, IPv4-mapped and scoped ones too."""
    try:
        address = ip_address(text)
    except ValueError:
        raise InvalidError(field, f"{_shown(text)} is no IPv4 or IPv6 address") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise InvalidError(field, f"{_shown(text)} has a scope, which means nothing outside one host")
        if address.ipv4_mapped is not None:
            raise InvalidError(field, f"{_shown(text)} is IPv4-mapped; write {address.ipv4_mapped}")
    return address


def parse_server_address(text: str, field: str) -> Address:
    """Return an address that a server can have: a unicast one that is not loopback. InvalidError naming ``field`` otherwise."""
    address = parse_address(text, field)
    kind = (
        "unspecified"
        if address.is_unspecified
        else "loopback"
        if address.is_loopback
        else "multicast"
        if address.is_multicast
        else "the broadcast address"
        if address == IPv4Address("255.255.255.255")
        else ""
    )
    if kind:
        raise InvalidError(field, f"{_shown(text)} is {kind}; a server has unicast addresses")
    return address


# A prefix length without sign, blank or leading zero; ip_network would also take a netmask.
_PREFIX_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)


def parse_cidr(text: str, field: str) -> Network:
    """Return the prefix in canonical form: host bits cleared, a bare address as /32 or /128. InvalidError otherwise."""
    base, slash, length = text.partition("/")
    if slash and not _PREFIX_LENGTH.fullmatch(length):
        raise InvalidError(field, f"{_shown(text)} is no CIDR: the prefix length must be a plain number")
    # No prefix is IPv4-mapped without its base; a shorter one that merely covers them (::/0) is none.
    address = parse_address(base, field)
    try:
        return ip_network(f"{address}/{length}" if slash else address, strict=False)
    except ValueError:
        raise InvalidError(field, f"{_shown(text)} is no CIDR: the prefix length is 0 to {address.max_prefixlen}") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "...")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """What a rule allows, in canonical form whatever was given.

    ``protocol`` is an IANA number or None for any; 58 becomes ICMP (1). ``ports`` is inclusive, None for all. InvalidError names
    the field as in ``secgroups.v1.RuleSpec``.
    """

    direction: Direction
    protocol: int | None
    ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    remote: Remote
    description: str = ""

    def __post_init__(self) -> None:
        # What is not given is not looked at: a start makes as many as there are rules.
        if self.protocol is not None:
            if not 0 <= self.protocol <= 255:
                raise InvalidError("protocol_number", f"is {self.protocol}, must be 0 to 255")
            if self.protocol == ICMPV6:
                object.__setattr__(self, "protocol", ICMP)
        if self.ports is not None:
            self._check_ports(*self.ports)
        if self.icmp_type is not None or self.icmp_code is not None:
            self._check_icmp()
        if self.description:
            check_description(self.description)

    def _check_ports(self, first: int, last: int) -> None:
        if self.protocol not in PROTOCOLS_WITH_PORTS:
            raise InvalidError(
                "ports", f"only TCP, UDP and SCTP have ports, {protocol_name(self.protocol)} has none: leave them out"
            )
        if not 1 <= first <= last <= PORT_MAX:
            for field, port in (("ports.first", first), ("ports.last", last)):
                if not 1 <= port <= PORT_MAX:
                    raise InvalidError(field, f"is {port}, must be 1 to {PORT_MAX}")
            raise InvalidError("ports", f"first port {first} is above last port {last}")
        if last - first == PORT_MAX - 1:
            object.__setattr__(self, "ports", None)

    def _check_icmp(self) -> None:
        for field, value in (("icmp_type", self.icmp_type), ("icmp_code", self.icmp_code)):
            if value is None:
                continue
            if self.protocol != ICMP:
                raise InvalidError(field, f"only ICMP has it, {protocol_name(self.protocol)} has not: leave it out")
            if not 0 <= value <= 255:
                raise InvalidError(field, f"is {value}, must be 0 to 255")
        if self.icmp_code is not None and self.icmp_type is None:
            raise InvalidError("icmp_code", "needs an icmp_type")

    @property
    def identity(self) -> str:
        """The canonical form as text, without the description: equal for duplicates and only for them."""
        ports = f"{self.ports[0]}-{self.ports[1]}" if self.ports else "*"
        protocol, icmp_type, icmp_code = (
            "*" if value is None else value for value in (self.protocol, self.icmp_type, self.icmp_code)
        )
        return f"{self.direction.name} {protocol} {ports} {icmp_type}/{icmp_code} {remote_text(self.remote)}"

    @property
    def remote_group_id(self) -> str | None:
        return self.remote.group_id if isinstance(self.remote, GroupRemote) else None


def protocol_name(protocol: int | None) -> str:
    """Return the name for people: ``any``, ``TCP`` or ``protocol 47``."""
    return "any" if protocol is None else PROTOCOL_NAMES.get(protocol, f"protocol {protocol}")


def remote_text(remote: Remote) -> str:
    """Return the remote as text: ``anywhere``, ``group ID`` or the CIDR."""
    if isinstance(remote, AnywhereRemote):
        return "anywhere"
    return f"group {remote.group_id}" if isinstance(remote, GroupRemote) else str(remote)


def rule_text(spec: RuleSpec, remote_group: str | None) -> str:
    """Return a rule as people say it, ``ingress TCP 22 from 203.0.113.0/24``; a group as remote by its name, if that is given."""
    words = [spec.direction.name.lower(), protocol_name(spec.protocol)]
    if spec.ports is not None:
        first, last = spec.ports
        words.append(str(first) if first == last else f"{first}-{last}")
    if spec.icmp_type is not None:
        words.append(f"type {spec.icmp_type}")
    if spec.icmp_code is not None:
        words.append(f"code {spec.icmp_code}")
    words.append("from" if spec.direction is Direction.INGRESS else "to")
    named = isinstance(spec.remote, GroupRemote) and remote_group is not None
    words.append(f"group {remote_group}" if named else remote_text(spec.remote))
    return " ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of a group. ``revision`` is that of its last change."""

    id: str
    project: str
    group_id: str
    spec: RuleSpec
    created_us: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A security group.

    ``revision`` is that of the last change of the group or its rules (its etag), ``rules_revision`` that of the last change of what
    its rules allow or of its name (the version of GroupRules), ``members_revision`` that of the last change of its members'
    addresses (the version of AddressSet).
    """

    id: str
    project: str
    name: str
    description: str
    created_us: int
    updated_us: int
    revision: int
    rules_revision: int
    members_revision: int

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        check_description(self.description)

    @property
    def is_default(self) -> bool:
        return self.name == DEFAULT_GROUP


# Of a server that was moved more often than this before it arrived anywhere, an agent from before the latest moves may be told to
# drop it too early, and that only if the controller was restarted meanwhile.
PREVIOUS_AGENTS_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server. ``group_ids`` ascend; ``addresses`` keep the order in which they were given.

    ``revision`` is that of its last change (its etag), ``binding_revision`` that of the last change of addresses or groups (the
    version of ServerBinding). ``previous_agent_ids`` are those that guarded it before ``moved_revision``, the latest first, at
    most ``PREVIOUS_AGENTS_MAX``: some of them may hold it still and let go once the present one has it in force.
    """

    project: str
    id: str
    name: str
    addresses: tuple[Address, ...]
    agent_id: str
    group_ids: tuple[str, ...]
    created_us: int
    updated_us: int
    revision: int
    binding_revision: int
    previous_agent_ids: tuple[str, ...] = ()
    moved_revision: int = 0
    # The name by which agents know the server. Made once: what is kept by it all over the controller is then one string.
    key: str = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.project}/{self.id}")
        check_name(self.id, "id")
        if self.name:
            check_name(self.name, "name")
        if self.agent_id:
            check_name(self.agent_id, "agent_id")
        if not self.addresses:
            raise InvalidError("addresses", "must not be empty; a server has at least one address")
        if len(self.addresses) > 1 and len(set(self.addresses)) < len(self.addresses):
            check_distinct([str(address) for address in self.addresses], "addresses")
        if not self.group_ids:
            raise InvalidError("group_ids", "must not be empty; a server has at least one group")


def check_distinct(values: Sequence[str], field: str) -> None:
    """InvalidError naming the index of the first value that stands twice."""
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        if value in seen:
            raise InvalidError(f"{field}[{index}]", f"{value} stands twice, first at {field}[{seen[value]}]")
        seen[value] = index


# What is kept and changed: what projects have, and what admins decide about them and about who comes in.
Object = Group | Rule | Server | LimitOverrides | Token | AgentCertificate | AgentRevocation
ObjectKind = Literal["group", "rule", "server", "limits", "token", "certificate", "revocation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One object before and after a revision; None where it was not or is not.

    What the change log holds and the state is folded from. A change of a rule implies that of its group's revisions, and a change
    of a server that of its groups' ``members_revision``: see ``State.apply``. ``at_us`` is the time of the commit.
    """

    revision: int
    kind: ObjectKind
    key: str
    before: Object | None
    after: Object | None
    at_us: int
    actor: str = ""


def etag_of(revision: int) -> str:
    """Return the etag of an object that last changed at ``revision``."""
    return f"r{revision}"


def groups_with_other_members(before: Server | None, after: Server | None) -> frozenset[str]:
    """Return the groups whose set of member addresses a change of a server alters."""
    old = frozenset(before.group_ids) if before else frozenset()
    new = frozenset(after.group_ids) if after else frozenset()
    if before and after and frozenset(before.addresses) != frozenset(after.addresses):
        return old | new
    return old ^ new


def alters_what_is_allowed(before: Rule | None, after: Rule | None) -> bool:
    """True unless only the description of a rule changed."""
    return before is None or after is None or before.spec.identity != after.spec.identity
