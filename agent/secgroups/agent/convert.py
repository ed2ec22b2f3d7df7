"""Turns what the controller sends into what the engine takes, and back for the cache.

What this program does not know is not enforced in part: a field or enum of a newer controller might narrow what a rule allows, so
an object with one is rejected as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from secgroups.agent.errors import UnenforceableError
from secgroups.agent.flow import ICMP, TCP, UDP, Address, Direction
from secgroups.agent.removal_limit import HeldBack
from secgroups.agent.ruleset import AddressSet, AddressSetPatch, GroupRules, Network, Rule, Ruleset, RulesetUpdate, ServerBinding
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import types_pb2 as types

_NUMBERS = {types.PROTOCOL_TCP: TCP, types.PROTOCOL_UDP: UDP, types.PROTOCOL_ICMP: ICMP}
_PROTOCOLS = {number: protocol for protocol, number in _NUMBERS.items()}
_IPV4_BYTES, _IPV6_BYTES = 4, 16


def server_binding(message: pb.ServerBinding) -> ServerBinding:
    """Return the binding. UnenforceableError if it is not one that this agent knows how to enforce."""
    _refuse_unknown(message)
    return ServerBinding(
        server=message.server,
        version=message.version,
        addresses=unpack(message.ipv4, message.ipv6),
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


def unpack(ipv4: bytes, ipv6: bytes) -> frozenset[Address]:
    """Return packed addresses. UnenforceableError if there is a rest."""
    for name, packed, size in (("IPv4", ipv4, _IPV4_BYTES), ("IPv6", ipv6, _IPV6_BYTES)):
        if len(packed) % size:
            raise UnenforceableError(f"{len(packed)} bytes of {name} addresses, not a multiple of {size}")
    addresses: list[Address] = [IPv4Address(ipv4[at : at + _IPV4_BYTES]) for at in range(0, len(ipv4), _IPV4_BYTES)]
    addresses += [IPv6Address(ipv6[at : at + _IPV6_BYTES]) for at in range(0, len(ipv6), _IPV6_BYTES)]
    return frozenset(addresses)


def _rule(message: pb.PolicyRule) -> Rule:
    spec = message.spec
    for part in (message, spec, spec.ports):
        _refuse_unknown(part, f"rule {message.id}")
    if spec.direction not in (types.DIRECTION_INGRESS, types.DIRECTION_EGRESS):
        raise UnenforceableError(f"rule {message.id}: direction {spec.direction} is not known to this agent")
    ports = None
    if spec.HasField("ports"):
        ports = (spec.ports.first, spec.ports.last or spec.ports.first)
    return Rule(
        id=message.id,
        direction=Direction(spec.direction),
        protocol=_protocol(message),
        ports=ports,
        icmp_type=spec.icmp_type if spec.HasField("icmp_type") else None,
        icmp_code=spec.icmp_code if spec.HasField("icmp_code") else None,
        remote=_remote(message),
    )


def _protocol(message: pb.PolicyRule) -> int | None:
    protocol = message.spec.protocol
    if protocol == types.PROTOCOL_ANY:
        return None
    if protocol == types.PROTOCOL_NUMBER and message.spec.HasField("protocol_number"):
        return message.spec.protocol_number
    if protocol not in _NUMBERS:
        raise UnenforceableError(f"rule {message.id}: protocol {protocol} is not known to this agent")
    return _NUMBERS[protocol]


def _remote(message: pb.PolicyRule) -> Network | str | None:
    spec = message.spec
    match spec.WhichOneof("remote"):
        case "anywhere":
            return None
        case "group_id":
            return spec.group_id
        case "cidr":
            try:
                return ip_network(spec.cidr)
            except ValueError:
                raise UnenforceableError(f"rule {message.id}: remote {spec.cidr!r} is no canonical CIDR") from None
    raise UnenforceableError(f"rule {message.id}: its kind of remote is not known to this agent")


def _refuse_unknown(message: Message, what: str = "it") -> None:
    if len(UnknownFieldSet(message)):
        raise UnenforceableError(f"{what} has fields that this agent does not know")


def whole_update(ruleset: Ruleset) -> pb.Update:
    """Return everything in ``ruleset`` as a message, for the cache."""
    return pb.Update(
        revision=ruleset.revision,
        sets=[_set_message(held) for held in ruleset.sets.values()],
        groups=[_group_message(held) for held in ruleset.groups.values()],
        servers=[_server_message(held) for held in ruleset.servers.values()],
    )


def held_back_message(held_back: HeldBack) -> pb.HeldBack:
    """Return what the controller, and whoever asks this agent, is told of a snapshot that is held back."""
    return pb.HeldBack(
        revision=held_back.revision,
        servers_removed=held_back.servers_removed,
        servers_held=held_back.servers_held,
        max_removal=held_back.max_removal,
    )


def _set_message(held: AddressSet) -> pb.AddressSet:
    return pb.AddressSet(group_id=held.group_id, version=held.version, ipv4=_pack(held.members, 4), ipv6=_pack(held.members, 6))


def _server_message(held: ServerBinding) -> pb.ServerBinding:
    return pb.ServerBinding(
        server=held.server,
        version=held.version,
        ipv4=_pack(held.addresses, 4),
        ipv6=_pack(held.addresses, 6),
        group_ids=held.group_ids,
    )


def _group_message(held: GroupRules) -> pb.GroupRules:
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


def _pack(addresses: Iterable[Address], family: int) -> bytes:
    return b"".join(sorted(address.packed for address in addresses if address.version == family))
