"""A set of members is in every way the set of its addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secgroups.agent.errors import BaseVersionError
from secgroups.agent.members import Members
from secgroups.agent.ruleset import AddressSet, AddressSetPatch, Ruleset, RulesetUpdate

# Few enough that two sets share some; of both families, with the same numbers in each.
address = st.one_of(st.integers(0, 5).map(IPv4Address), st.integers(0, 5).map(IPv6Address))
addresses = st.frozensets(address)


@given(addresses, addresses, address)
def test_members_are_the_set_of_their_addresses(some: frozenset, others: frozenset, one: IPv4Address | IPv6Address) -> None:
    members = Members(some)
    assert set(members) == some
    assert len(members) == len(some)
    assert (one in members) == (one in some)
    assert (members == others, others == members) == (some == others, some == others)
    assert (members == Members(others)) == (some == others)
    assert hash(members) == hash(some)
    assert members | others == some | others
    assert others - members == others - some
    assert members & Members(others) == some & others
    assert Members.of(members) is members
    assert Members.unpacked(members.packed) == some


@pytest.mark.parametrize("other", ["10.0.0.1", b"\x0a\0\0\x01", 0x0A000001, None], ids=repr)
def test_what_is_no_address_is_no_member(other: object) -> None:
    assert ip_address("10.0.0.1") in Members([ip_address("10.0.0.1")])
    assert other not in Members([ip_address("10.0.0.1")])


@given(addresses, addresses, addresses)
def test_a_patch_adds_then_removes(held: frozenset, added: frozenset, removed: frozenset) -> None:
    before = Ruleset(sets={"g": AddressSet(group_id="g", version=1, members=held)})
    patch = AddressSetPatch(group_id="g", base_version=1, version=2, added=added, removed=removed)
    after = before.apply(RulesetUpdate(revision=2, set_patches=(patch,)))
    assert after.sets["g"].members == (held | added) - removed
    with pytest.raises(BaseVersionError):
        after.apply(RulesetUpdate(revision=3, set_patches=(patch,)))
