"""Turns what the controller sends into what the engine takes, and back for the cache.

What this program does not know is not enforced in part: a field or enum of a newer controller might narrow what a rule allows, so
an object with one is rejected as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_network

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from secgroups.agent.errors import UnenforceableError
from secgroups.agent.flow import ICMP, TCP, UDP, Direction
from secgroups.agent.members import IPV4_BYTES, IPV6_BYTES, Members, refuse_mapped
from secgroups.agent.removal_limit import HeldBack
from secgroups.agent.ruleset import AddressSet, AddressSetPatch, GroupRules, Network, Rule, Ruleset, RulesetUpdate, ServerBinding
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import types_pb2 as types

_NUMBERS = {types.PROTOCOL_TCP: TCP, types.PROTOCOL_UDP: UDP, types.PROTOCOL_ICMP: ICMP}
_PROTOCOLS = {number: protocol for protocol, number in _NUMBERS.items()}

SPECS_KEPT = 8_192
# Most rules name one of few prefixes, and to parse one takes as long as all the rest of a rule.
_network = lru_cache(maxsize=4_096)(ip_network)

# Direction, protocol, ports, ICMP type and code, remote: as in ``Rule``.
_Meaning = tuple[Direction, int | None, tuple[int, int] | None, int | None, int | None, Network | str | None]


def server_binding(message: pb.ServerBinding) -> ServerBinding:
    """Return the binding. UnenforceableError if it is not one that this agent knows how to enforce."""
    _refuse_unknown(message)
    return ServerBinding(
        server=message.server,
        version=message.version,
        addresses=frozenset(unpack(message.ipv4, message.ipv6)),
        group_ids=tuple(message.group_ids),
    )


def group_rules(message: pb.GroupRules) -> GroupRules:
    """Return the group. UnenforceableError if one of its rules can't be enforced as it is meant."""
    _refuse_unknown(message)
    return GroupRules(
        group_id=message.group_id,
        version=message.version,
        name=message.name,
        rules=tuple(_rule(rule) for rule in message.rules),
    )


def address_set(message: pb.AddressSet) -> AddressSet:
    """Return the set. UnenforceableError if it holds no whole addresses."""
    _refuse_unknown(message)
    return AddressSet(group_id=message.group_id, version=message.version, members=unpack(message.ipv4, message.ipv6))


def address_set_patch(message: pb.AddressSetPatch) -> AddressSetPatch:
    """Return the patch. UnenforceableError if it holds no whole addresses."""
    _refuse_unknown(message)
    return AddressSetPatch(
        group_id=message.group_id,
        base_version=message.base_version,
        version=message.version,
        added=unpack(message.added_ipv4, message.added_ipv6),
        removed=unpack(message.removed_ipv4, message.removed_ipv6),
    )


def ruleset_update(message: pb.Update) -> RulesetUpdate:
    """Return an update that is one whole step. UnenforceableError if something in it can't be enforced."""
    _refuse_unknown(message)
    return RulesetUpdate(
        revision=message.revision,
        sets=tuple(map(address_set, message.sets)),
        set_patches=tuple(map(address_set_patch, message.set_patches)),
        groups=tuple(map(group_rules, message.groups)),
        servers=tuple(map(server_binding, message.servers)),
        removed_servers=tuple(message.removed_servers),
        removed_groups=tuple(message.removed_groups),
        removed_sets=tuple(message.removed_sets),
    )


def unpack(ipv4: bytes, ipv6: bytes) -> Members:
    """Return packed addresses. UnenforceableError if there is a rest, or one is IPv4-mapped."""
    for name, packed, size in (("IPv4", ipv4, IPV4_BYTES), ("IPv6", ipv6, IPV6_BYTES)):
        if len(packed) % size:
            raise UnenforceableError(f"{len(packed)} bytes of {name} addresses, not a multiple of {size}")
    parts = [ipv4[at : at + IPV4_BYTES] for at in range(0, len(ipv4), IPV4_BYTES)]
    parts6 = [ipv6[at : at + IPV6_BYTES] for at in range(0, len(ipv6), IPV6_BYTES)]
    refuse_mapped(parts6)
    return Members.unpacked(parts + parts6)


def _rule(message: pb.PolicyRule) -> Rule:
    try:
        _refuse_unknown(message)
        direction, protocol, ports, icmp_type, icmp_code, remote = _meaning(message.spec.SerializeToString())
    except UnenforceableError as error:
        raise UnenforceableError(f"rule {message.id}: {error}") from None
    return Rule(
        id=message.id,
        direction=direction,
        protocol=protocol,
        ports=ports,
        icmp_type=icmp_type,
        icmp_code=icmp_code,
        remote=remote,
    )


# The same few things are allowed again and again, and a group comes whole when one of its rules changes. Fields that are not known
# are part of the bytes, so what is refused is never taken for what is not.
@lru_cache(maxsize=SPECS_KEPT)
def _meaning(data: bytes) -> _Meaning:
    """Return what a ``RuleSpec`` allows, as the fields of a rule after its id. UnenforceableError if that is not known."""
    spec = types.RuleSpec.FromString(data)
    _refuse_unknown(spec)
    _refuse_unknown(spec.ports)
    _refuse_unknown(spec.anywhere)
    if spec.direction not in (types.DIRECTION_INGRESS, types.DIRECTION_EGRESS):
        raise UnenforceableError(f"direction {spec.direction} is not known to this agent")
    ports = None
    if spec.HasField("ports"):
        ports = (spec.ports.first, spec.ports.last or spec.ports.first)
    return (
        Direction(spec.direction),
        _protocol(spec),
        ports,
        spec.icmp_type if spec.HasField("icmp_type") else None,
        spec.icmp_code if spec.HasField("icmp_code") else None,
        _remote(spec),
    )


def _protocol(spec: types.RuleSpec) -> int | None:
    if spec.protocol == types.PROTOCOL_ANY:
        return None
    if spec.protocol == types.PROTOCOL_NUMBER and spec.HasField("protocol_number"):
        return spec.protocol_number
    if spec.protocol not in _NUMBERS:
        raise UnenforceableError(f"protocol {spec.protocol} is not known to this agent")
    return _NUMBERS[spec.protocol]


def _remote(spec: types.RuleSpec) -> Network | str | None:
    match spec.WhichOneof("remote"):
        case "anywhere":
            return None
        case "group_id":
            return spec.group_id
        case "cidr":
            try:
                return _network(spec.cidr)
            except ValueError:
                raise UnenforceableError(f"remote {spec.cidr!r} is no canonical CIDR") from None
    raise UnenforceableError("its kind of remote is not known to this agent")


def _refuse_unknown(message: Message, what: str = "it") -> None:
    if len(UnknownFieldSet(message)):
        raise UnenforceableError(f"{what} has fields that this agent does not know")


def whole_update(ruleset: Ruleset) -> pb.Update:
    """Return everything in ``ruleset`` as a message."""
    return pb.Update(
        revision=ruleset.revision,
        sets=map(set_message, ruleset.sets.values()),
        groups=map(group_message, ruleset.groups.values()),
        servers=map(server_message, ruleset.servers.values()),
    )


def held_back_message(held_back: HeldBack) -> pb.HeldBack:
    """Return what the controller, and whoever asks this agent, is told of a snapshot that is held back."""
    return pb.HeldBack(
        revision=held_back.revision,
        servers_removed=held_back.servers_removed,
        servers_held=held_back.servers_held,
        max_removal=held_back.max_removal,
    )


def set_message(held: AddressSet) -> pb.AddressSet:
    """Return a set as a message."""
    return pb.AddressSet(
        group_id=held.group_id,
        version=held.version,
        ipv4=_joined(held.packed, IPV4_BYTES),
        ipv6=_joined(held.packed, IPV6_BYTES),
    )


def server_message(held: ServerBinding) -> pb.ServerBinding:
    """Return a binding as a message."""
    packed = [address.packed for address in held.addresses]
    return pb.ServerBinding(
        server=held.server,
        version=held.version,
        ipv4=_joined(packed, IPV4_BYTES),
        ipv6=_joined(packed, IPV6_BYTES),
        group_ids=held.group_ids,
    )


def group_message(held: GroupRules) -> pb.GroupRules:
    """Return a group as a message."""
    rules = [pb.PolicyRule(id=rule.id, spec=_spec_message(rule)) for rule in held.rules]
    return pb.GroupRules(group_id=held.group_id, version=held.version, name=held.name, rules=rules)


def _spec_message(rule: Rule) -> types.RuleSpec:
    spec = types.RuleSpec(
        direction=types.DIRECTION_INGRESS if rule.direction is Direction.INGRESS else types.DIRECTION_EGRESS,
        icmp_type=rule.icmp_type,
        icmp_code=rule.icmp_code,
    )
    if rule.protocol is None:
        spec.protocol = types.PROTOCOL_ANY
    elif rule.protocol in _PROTOCOLS:
        spec.protocol = _PROTOCOLS[rule.protocol]
    else:
        spec.protocol = types.PROTOCOL_NUMBER
        spec.protocol_number = rule.protocol
    if rule.ports is not None:
        spec.ports.first, spec.ports.last = rule.ports
    if rule.remote is None:
        spec.anywhere.SetInParent()
    elif isinstance(rule.remote, str):
        spec.group_id = rule.remote
    else:
        spec.cidr = str(rule.remote)
    return spec


def _joined(packed: Iterable[bytes], size: int) -> bytes:
    return b"".join(sorted([each for each in packed if len(each) == size]))
