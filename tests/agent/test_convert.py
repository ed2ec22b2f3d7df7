"""What the controller sends is enforced as it is meant or refused as a whole, whatever was understood before."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from secgroups.agent.convert import address_set, address_set_patch, group_rules, server_binding
from secgroups.agent.errors import UnenforceableError
from secgroups.agent.flow import Direction
from secgroups.agent.ruleset import AddressSet, Rule, ServerBinding
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import types_pb2 as types

SSH = types.RuleSpec(
    direction=types.DIRECTION_INGRESS,
    protocol=types.PROTOCOL_TCP,
    ports=types.PortRange(first=22, last=22),
    cidr="10.0.0.0/8",
)
MEANT = Rule(id="r", direction=Direction.INGRESS, protocol=6, ports=(22, 22), remote=ip_network("10.0.0.0/8"))
# Field 100, the number 1: what a newer controller might say besides.
UNKNOWN = b"\xa0\x06\x01"


def group_of(spec: types.RuleSpec, *, rule_id: str = "r") -> pb.GroupRules:
    return pb.GroupRules(group_id="g", version=1, name="g", rules=[pb.PolicyRule(id=rule_id, spec=spec)])


def in_spec(spec: types.RuleSpec) -> types.RuleSpec:
    return types.RuleSpec.FromString(spec.SerializeToString() + UNKNOWN)


def in_ports(spec: types.RuleSpec) -> types.RuleSpec:
    changed = types.RuleSpec.FromString(spec.SerializeToString())
    changed.ports.MergeFromString(UNKNOWN)
    return changed


def in_anywhere(spec: types.RuleSpec) -> types.RuleSpec:
    changed = types.RuleSpec.FromString(spec.SerializeToString())
    changed.anywhere.MergeFromString(UNKNOWN)
    return changed


@pytest.mark.parametrize("newer", [in_spec, in_ports, in_anywhere])
def test_a_spec_with_a_field_that_is_not_known_is_refused_each_time_and_the_one_without_is_not(newer) -> None:
    for _ in range(2):
        assert group_rules(group_of(SSH)).rules == (MEANT,)
        with pytest.raises(UnenforceableError, match=r"^rule r: it has fields that this agent does not know$"):
            group_rules(group_of(newer(SSH)))


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("rule other: direction 0 is not known to this agent", {"direction": types.DIRECTION_UNSPECIFIED}),
        ("rule other: protocol 0 is not known to this agent", {"protocol": types.PROTOCOL_UNSPECIFIED}),
        ("rule other: remote '10.0.0.1/8' is no canonical CIDR", {"cidr": "10.0.0.1/8"}),
        ("rule other: remote ::ffff:cb00:7100/120 is IPv4-mapped", {"cidr": "::ffff:cb00:7100/120"}),
        ("rule other: remote ::ffff:0:0/96 is IPv4-mapped", {"cidr": "::ffff:0:0/96"}),
        ("rule other: its kind of remote is not known to this agent", {"cidr": None}),
        ("rule other: ports with protocol 47", {"protocol": types.PROTOCOL_NUMBER, "protocol_number": 47}),
    ],
)
def test_what_can_not_be_enforced_is_named_with_its_rule(words: str, change: dict) -> None:
    spec = types.RuleSpec()
    spec.CopyFrom(SSH)
    for field, value in change.items():
        if value is None:
            spec.ClearField(field)
        else:
            setattr(spec, field, value)
    assert group_rules(group_of(SSH, rule_id="other")).rules[0].id == "other"
    with pytest.raises(UnenforceableError, match=f"^{words}"):
        group_rules(group_of(spec, rule_id="other"))


def test_members_come_in_both_families_and_whole() -> None:
    four, six = IPv4Address("10.0.0.1"), IPv6Address("2001:db8::1")
    made = address_set(pb.AddressSet(group_id="g", version=1, ipv4=four.packed, ipv6=six.packed))
    assert made.members == {four, six}
    with pytest.raises(UnenforceableError, match="3 bytes of IPv4 addresses, not a multiple of 4"):
        address_set(pb.AddressSet(group_id="g", version=1, ipv4=four.packed[:3]))
    with pytest.raises(UnenforceableError, match="17 bytes of IPv6 addresses, not a multiple of 16"):
        address_set(pb.AddressSet(group_id="g", version=1, ipv6=six.packed + b"x"))


MAPPED = IPv6Address("::ffff:10.0.0.9")
BESIDE = IPv6Address("::fffe:10.0.0.9")


def test_an_address_that_is_mapped_is_refused_wherever_it_stands_and_its_neighbour_is_not() -> None:
    """Else the compiled engine would take it for one of IPv4, and give it what a rule for that allows."""
    packed = MAPPED.packed
    for make in (
        lambda raw: address_set(pb.AddressSet(group_id="g", version=1, ipv6=raw)),
        lambda raw: address_set_patch(pb.AddressSetPatch(group_id="g", base_version=1, version=2, added_ipv6=raw)),
        lambda raw: server_binding(pb.ServerBinding(server="p/s", version=1, ipv6=raw)),
        lambda raw: ServerBinding(server="p/s", version=1, addresses=frozenset({IPv6Address(raw)}), group_ids=()),
        lambda raw: AddressSet(group_id="g", version=1, members={IPv6Address(raw)}),
    ):
        assert make(BESIDE.packed)
        with pytest.raises(UnenforceableError, match=r"::ffff:a00:9 is IPv4-mapped"):
            make(packed)
