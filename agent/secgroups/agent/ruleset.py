"""What the controller tells an agent to enforce, as plain values: bindings, group rules, address sets and updates of them.

The engine takes these through ``apply`` and nothing else. An object that can't be enforced raises ``UnenforceableError`` when
it is made, so that what exists can be enforced.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from secgroups.agent.errors import BaseVersionError, UnenforceableError
from secgroups.agent.flow import ICMP, ICMPV6, PROTOCOLS_WITH_PORTS, Address, Direction
from secgroups.agent.members import Members

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One allowing rule in canonical form.

    ``protocol`` is None for any; ``ICMP`` (1) stands for ICMP on IPv4 and ICMPv6 on IPv6. ``ports`` is an inclusive range of
    destination ports of the opening packet, None for all. ``remote`` is a network, the id of a group whose members are meant,
    or None for anywhere (both families).
    """

    id: str
    direction: Direction
    protocol: int | None = None
    ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    remote: Network | str | None = None

    def __post_init__(self) -> None:
        if self.protocol is not None and not 0 <= self.protocol <= 255:
            raise UnenforceableError(f"rule {self.id}: protocol {self.protocol} is not in 0..255")
        if self.protocol == ICMPV6:
            raise UnenforceableError(f"rule {self.id}: protocol {ICMPV6}, which is written as {ICMP} in canonical form")
        if self.ports is not None:
            if self.protocol not in PROTOCOLS_WITH_PORTS:
                raise UnenforceableError(f"rule {self.id}: ports with protocol {self.protocol}, which has none")
            if not 1 <= self.ports[0] <= self.ports[1] <= 65_535:
                raise UnenforceableError(f"rule {self.id}: ports {self.ports[0]}-{self.ports[1]} are no range within 1..65535")
        if self.icmp_type is not None and (self.protocol != ICMP or not 0 <= self.icmp_type <= 255):
            raise UnenforceableError(f"rule {self.id}: ICMP type {self.icmp_type} with protocol {self.protocol}")
        if self.icmp_code is not None and (self.icmp_type is None or not 0 <= self.icmp_code <= 255):
            raise UnenforceableError(f"rule {self.id}: ICMP code {self.icmp_code} with type {self.icmp_type}")
        if isinstance(self.remote, IPv6Network) and self.remote.prefixlen >= 96 and self.remote.network_address.ipv4_mapped:
            # For an engine these are IPv4: it would allow what it does not say.
            raise UnenforceableError(f"rule {self.id}: remote {self.remote} is IPv4-mapped; it is a network of IPv4 or of none")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRules:
    """All rules of one group. ``version`` is the revision at which they last changed."""

    group_id: str
    version: int
    name: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSet:
    """The addresses of a group's members, for rules that name the group as remote."""

    group_id: str
    version: int
    members: Set[Address]

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", Members.of(self.members))

    @property
    def packed(self) -> frozenset[bytes]:
        """The members as bytes in network order."""
        return Members.of(self.members).packed


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSetPatch:
    """Turns the set at ``base_version`` into the one at ``version``: what is both added and removed is not in it."""

    group_id: str
    base_version: int
    version: int
    added: Set[Address] = frozenset()
    removed: Set[Address] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "added", Members.of(self.added))
        object.__setattr__(self, "removed", Members.of(self.removed))

    @property
    def packed(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Those added, without those removed, and those removed, as bytes in network order."""
        removed = Members.of(self.removed).packed
        return Members.of(self.added).packed - removed, removed


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBinding:
    """One guarded server. ``server`` is ``project/id``; ``group_ids`` are all it is attached to."""

    server: str
    version: int
    addresses: frozenset[Address]
    group_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        for address in self.addresses:
            if address.version == 6 and address.ipv4_mapped is not None:
                raise UnenforceableError(f"server {self.server}: {address} is IPv4-mapped; it is an address of IPv4 or of none")


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesetUpdate:
    """One atomic step of what is in force. With ``snapshot`` whatever is not mentioned is removed."""

    revision: int
    snapshot: bool = False
    sets: tuple[AddressSet, ...] = ()
    set_patches: tuple[AddressSetPatch, ...] = ()
    groups: tuple[GroupRules, ...] = ()
    servers: tuple[ServerBinding, ...] = ()
    removed_servers: tuple[str, ...] = ()
    removed_groups: tuple[str, ...] = ()
    removed_sets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """Everything that is in force at one revision; ``apply`` gives the next one and leaves this one as it is."""

    revision: int = 0
    sets: Mapping[str, AddressSet] = field(default_factory=dict)
    groups: Mapping[str, GroupRules] = field(default_factory=dict)
    servers: Mapping[str, ServerBinding] = field(default_factory=dict)

    def apply(self, update: RulesetUpdate) -> Ruleset:
        """Return the ruleset after ``update``. Raises ``BaseVersionError`` if a patch does not fit what is held."""
        fresh = update.snapshot
        sets = {} if fresh else dict(self.sets)
        groups = {} if fresh else dict(self.groups)
        servers = {} if fresh else dict(self.servers)
        sets.update((new.group_id, new) for new in update.sets)
        for patch in update.set_patches:
            sets[patch.group_id] = _patched(sets.get(patch.group_id), patch)
        groups.update((new.group_id, new) for new in update.groups)
        servers.update((new.server, new) for new in update.servers)
        for server in update.removed_servers:
            servers.pop(server, None)
        for group_id in update.removed_groups:
            groups.pop(group_id, None)
        for group_id in update.removed_sets:
            sets.pop(group_id, None)
        return Ruleset(revision=update.revision, sets=sets, groups=groups, servers=servers)


def _patched(held: AddressSet | None, patch: AddressSetPatch) -> AddressSet:
    if held is None or held.version != patch.base_version:
        raise BaseVersionError(group_id=patch.group_id, held=held.version if held else 0, needed=patch.base_version)
    added, removed = patch.packed
    return AddressSet(group_id=patch.group_id, version=patch.version, members=Members.unpacked((held.packed - removed) | added))
