"""Rules of a case as the API's messages, and which of them are the same."""

from __future__ import annotations

from collections.abc import Callable

from secgroups.controller.convert import spec_of
from secgroups.controller.errors import ControllerError
from secgroups.controller.model import ANY_IPV4, ANY_IPV6
from secgroups.lab.cases.model import AnyRemote, CidrRemote, Protocol, Ref, RuleText
from secgroups.lab.cases.world import RefusedError
from secgroups.v1 import types_pb2 as pb

_DIRECTIONS = {"ingress": pb.DIRECTION_INGRESS, "egress": pb.DIRECTION_EGRESS}
_PROTOCOLS = {
    Protocol.TCP: pb.PROTOCOL_TCP,
    Protocol.UDP: pb.PROTOCOL_UDP,
    Protocol.ICMP: pb.PROTOCOL_ICMP,
    Protocol.ANY: pb.PROTOCOL_ANY,
}


def identity_of(spec: pb.RuleSpec) -> str:
    """Return the canonical form: equal for duplicates and only for them. RefusedError if the rule can't be."""
    try:
        return spec_of(spec).identity
    except ControllerError as error:
        raise RefusedError(error.code, str(error)) from None


def rule_spec(rule: RuleText, group_id: Callable[[Ref], str]) -> pb.RuleSpec:
    """Return the message for ``rule``, as it is written; ``group_id`` tells the id of a remote group."""
    spec = pb.RuleSpec(direction=_DIRECTIONS[rule.direction], description=rule.description)
    if isinstance(rule.protocol, Protocol):
        spec.protocol = _PROTOCOLS[rule.protocol]
    else:
        spec.protocol = pb.PROTOCOL_NUMBER
        spec.protocol_number = rule.protocol
    if rule.ports is not None:
        spec.ports.first, spec.ports.last = rule.ports
        spec.ports.SetInParent()
    if rule.icmp_type is not None:
        spec.icmp_type = rule.icmp_type
    if rule.icmp_code is not None:
        spec.icmp_code = rule.icmp_code
    if isinstance(rule.remote, AnyRemote):
        spec.anywhere.SetInParent()
    elif isinstance(rule.remote, CidrRemote):
        spec.cidr = rule.remote.text
    else:
        spec.group_id = group_id(rule.remote.group)
    return spec


# The canonical forms of the two rules that every group is born with.
BORN_EGRESS = frozenset(
    identity_of(pb.RuleSpec(direction=pb.DIRECTION_EGRESS, protocol=pb.PROTOCOL_ANY, cidr=str(everywhere)))
    for everywhere in (ANY_IPV4, ANY_IPV6)
)
