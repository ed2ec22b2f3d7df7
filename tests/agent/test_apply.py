"""Updates: which servers get a new epoch, and that only the state counts, not how it came about."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from agent_world import (
    ADDRESSES,
    ANY_EGRESS,
    ANY_INGRESS,
    CLIENT,
    DB,
    DNS,
    EGRESS,
    FIRST,
    INGRESS,
    LATER,
    SSH,
    WEB,
    World,
    rule,
    tcp,
    udp,
)

from secgroups.agent.errors import BaseVersionError, UnenforceableError
from secgroups.agent.flow import ICMP, ICMPV6, TCP, UDP
from secgroups.agent.ruleset import AddressSet, AddressSetPatch, GroupRules, Rule

MINE, WEB4 = "10.0.0.9", "10.0.0.5"
FROM_WEB = rule("r", INGRESS, TCP, 3306, "group:web")


def two_tiers(engine):
    """DB lets the members of ``web`` in; WEB is one and has rules of its own."""
    world = World(engine, FROM_WEB)
    world.apply(
        sets=(world.members("web", WEB4), world.members("unused", CLIENT)),
        groups=(world.group("web", DNS), world.group("nobody", SSH), world.group("empty")),
        servers=(world.binding(WEB, "web"),),
    )
    return world


@pytest.mark.parametrize(
    ("touched", "change"),
    [
        ({DB}, lambda world: {"groups": (world.group("db", FROM_WEB, SSH),)}),
        ({DB}, lambda world: {"groups": (world.group("db"),)}),
        ({WEB}, lambda world: {"groups": (world.group("web", SSH),)}),
        (set(), lambda world: {"groups": (world.group("nobody", DNS),)}),  # nobody is in it
        ({DB}, lambda world: {"sets": (world.members("web", WEB4, "10.0.0.6"),)}),
        ({DB}, lambda world: {"removed_sets": ("web",)}),
        (set(), lambda world: {"sets": (world.members("unused", MINE),)}),  # no rule names it
        ({WEB}, lambda world: {"servers": (world.binding(WEB, "web", "nobody"),)}),
        ({WEB}, lambda world: {"servers": (world.binding(WEB, "web", addresses=(WEB4,)),)}),
        ({"p/new"}, lambda world: {"servers": (world.binding("p/new", "web", addresses=("10.0.0.6",)),)}),
        ({DB, WEB}, lambda world: {"groups": (world.group("db", SSH), world.group("web", SSH))}),
        # the same again, and what has no effect on verdicts
        (set(), lambda world: {"groups": (world.group("db", FROM_WEB),)}),
        (set(), lambda world: {"groups": (world.group("web", DNS, name="renamed"),)}),
        (set(), lambda world: {"sets": (world.members("web", WEB4),)}),
        (set(), lambda world: {"servers": (world.binding(DB, "db"), world.binding(WEB, "web", "web"))}),
        (set(), lambda world: {"servers": (world.binding(WEB, "web", "empty"),)}),
        (set(), lambda world: {}),
    ],
)
def test_exactly_the_servers_whose_verdicts_can_change_get_a_new_epoch(engine, touched, change):
    world = two_tiers(engine)
    sent = {server: udp(CLIENT, ADDRESSES[server][0], 53, fragment=FIRST) for server in (DB, WEB)}
    for first in sent.values():
        world.reason(first)
    assert world.apply(**change(world)).servers_touched == touched
    for server, first in sent.items():
        later = replace(first, fragment=LATER, source_port=0, destination_port=0)
        assert (world.reason(later).name == "UNKNOWN_FRAGMENT") == (server in touched)


def test_the_order_of_rules_in_a_group_and_of_groups_of_a_server_does_not_matter(engine):
    world = World(engine, SSH, DNS)
    world.apply(groups=(world.group("web", ANY_EGRESS),), servers=(world.binding(DB, "db", "web"),))
    assert world.set_rules(DNS, SSH).servers_touched == frozenset()
    assert world.bind(DB, "web", "db").servers_touched == frozenset()


def test_a_patch_turns_one_version_of_a_set_into_the_next(engine):
    world = two_tiers(engine)
    held = world.firewall.ruleset.sets["web"].version
    joined, left = ip_address("10.0.0.6"), ip_address(WEB4)
    patch = AddressSetPatch(group_id="web", base_version=held, version=99, added=frozenset({joined}), removed=frozenset({left}))
    assert world.apply(set_patches=(patch,)).servers_touched == {DB}
    assert world.reasons(tcp("10.0.0.6", MINE, 3306), tcp(WEB4, MINE, 3306, at=DB, direction=INGRESS)) == ["NEW", "NO_RULE"]


@pytest.mark.parametrize(("group_id", "base_version", "held"), [("web", 1, 2), ("not-held", 1, 0)])
def test_a_patch_that_does_not_fit_changes_nothing(engine, group_id, base_version, held):
    world = two_tiers(engine)
    before = world.firewall.ruleset
    patch = AddressSetPatch(group_id=group_id, base_version=base_version, version=9)
    with pytest.raises(BaseVersionError, match=f"{group_id}: patch for version {base_version}, held is {held}") as caught:
        world.apply(set_patches=(patch,), groups=(world.group("db"),))
    assert (caught.value.held, caught.value.needed) == (held, base_version)
    assert world.firewall.ruleset is before
    assert world.reason(tcp(WEB4, MINE, 3306, at=DB, direction=INGRESS)).name == "NEW"


def test_an_update_names_its_revision(engine):
    world = World(engine)
    applied = world.set_rules(SSH)
    assert (applied.revision, world.firewall.ruleset.revision) == (world.revision, world.revision)


def test_removed_objects_are_gone(engine):
    world = two_tiers(engine)
    world.apply(removed_groups=("nobody",), removed_sets=("unused",), removed_servers=(WEB,))
    ruleset = world.firewall.ruleset
    assert (set(ruleset.groups), set(ruleset.sets), set(ruleset.servers)) == ({"db", "web", "empty"}, {"web"}, {DB})


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("protocol 256 is not in 0..255", {"protocol": 256}),
        ("protocol -1", {"protocol": -1}),
        ("canonical form", {"protocol": ICMPV6}),
        ("ports with protocol None", {"ports": (1, 2)}),
        ("ports with protocol 1,", {"protocol": ICMP, "ports": (1, 2)}),
        ("ports 0-1", {"protocol": TCP, "ports": (0, 1)}),
        ("ports 2-1", {"protocol": UDP, "ports": (2, 1)}),
        ("ports 1-65536", {"protocol": UDP, "ports": (1, 65_536)}),
        ("ICMP type 256", {"protocol": ICMP, "icmp_type": 256}),
        ("ICMP type 8 with protocol 6", {"protocol": TCP, "icmp_type": 8}),
        ("ICMP code 0 with type None", {"protocol": ICMP, "icmp_code": 0}),
        ("ICMP code 256", {"protocol": ICMP, "icmp_type": 3, "icmp_code": 256}),
    ],
)
def test_a_rule_that_can_not_be_enforced_can_not_be_made(message, wrong):
    with pytest.raises(UnenforceableError, match=f"rule r: .*{message}"):
        Rule(id="r", direction=EGRESS, **wrong)
    assert replace(SSH, remote=ip_network("::/0")).remote.version == 6


def test_what_is_in_force_is_made_of_values(engine):
    world = two_tiers(engine)
    before = world.firewall.ruleset
    world.apply(groups=(GroupRules(group_id="db", version=9, name="db", rules=(ANY_INGRESS,)),), removed_sets=("web",))
    assert before.groups["db"].rules == (FROM_WEB,)
    assert before.sets["web"] == AddressSet(group_id="web", version=2, members=frozenset({ip_address(WEB4)}))


def test_a_patch_from_a_version_to_itself_is_a_patch_like_any_other(engine):
    world = two_tiers(engine)
    joined, held = ip_address("10.0.0.6"), world.firewall.ruleset.sets["web"].version
    asked = tcp("10.0.0.6", MINE, 3306)
    for added, removed, expected in [({joined}, set(), "NEW"), ({joined}, set(), "ESTABLISHED"), (set(), {joined}, "NO_RULE")]:
        patch = AddressSetPatch(group_id="web", base_version=held, version=held, added=frozenset(added), removed=frozenset(removed))
        world.apply(set_patches=(patch,))
        assert (joined in world.firewall.ruleset.sets["web"].members) == bool(added)
        assert world.reason(asked).name == expected
