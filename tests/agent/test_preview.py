"""How many live flows a change would cut: told beforehand, and found true when it is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_world import (
    ACK,
    ANY_EGRESS,
    ANY_INGRESS,
    CLIENT,
    CLIENT6,
    DB,
    DNS,
    EGRESS,
    INGRESS,
    OTHER,
    PING,
    SSH,
    SYN,
    SYN_ACK,
    WEB,
    World,
    icmp,
    reply,
    rule,
    tcp,
    udp,
)

from secgroups.agent.errors import BaseVersionError
from secgroups.agent.flow import TCP
from secgroups.agent.preview import CHECKS_PER_SLICE
from secgroups.agent.ruleset import AddressSetPatch, RulesetUpdate

MINE, MINE6, WEB4, WEB6 = "10.0.0.9", "2001:db8::9", "10.0.0.5", "2001:db8::5"
LOGIN, LOGIN6, QUERY, PINGED = tcp(CLIENT, MINE, 22), tcp(CLIENT6, MINE6, 22), udp(CLIENT, MINE, 53), icmp(CLIENT, MINE, 8)
FROM_WEB = tcp(WEB4, MINE, 3306, at=DB)
AT_WEB = tcp(CLIENT, WEB4, 22, at=WEB)
SSH4 = rule("s4", INGRESS, TCP, 22, "0.0.0.0/0")
MYSQL = rule("f-mysql", INGRESS, TCP, 3306, "group:web")
FLOWS = (LOGIN, LOGIN6, QUERY, PINGED, FROM_WEB, AT_WEB)


def site(engine):
    """DB in ``db`` and ``more``, WEB in ``web``, whose members may speak to DB's port 3306; a flow of each sort is answered."""
    world = World(engine)
    world.apply(
        sets=(world.members("web", WEB4, WEB6),),
        groups=(
            world.group("db", ANY_EGRESS, SSH, DNS, PING, MYSQL),
            world.group("web", ANY_EGRESS, replace(SSH, id="w-ssh")),
            world.group("more", rule("m-ssh", INGRESS, TCP, 22, f"{CLIENT}/32"), rule("m-egress", EGRESS)),
        ),
        servers=(world.binding(DB, "db"), world.binding(WEB, "web")),
    )
    for opening in FLOWS:
        world.open_answered(opening)
    return world


def count(world, **update):
    return world.firewall.count_cut(RulesetUpdate(revision=world.revision + 1, **update), world.now_ns)


def rules(*kept):
    return lambda world: {"groups": (world.group("db", *kept),)}


def patch(world, *, removed):
    held = world.firewall.ruleset.sets["web"]
    gone = world.members("web", *removed).members
    return {"set_patches": (AddressSetPatch(group_id="web", base_version=held.version, version=held.version + 1, removed=gone),)}


def everything_but(*, servers=(), groups=()):
    def update(world):
        held = world.firewall.ruleset
        return {
            "snapshot": True,
            "sets": tuple(held.sets.values()),
            "groups": tuple(group for name, group in held.groups.items() if name not in groups),
            "servers": tuple(binding for name, binding in held.servers.items() if name not in servers),
        }

    return update


CHANGES = [
    (0, "nothing", lambda _: {}),
    (0, "the same rules again", rules(ANY_EGRESS, SSH, DNS, PING, MYSQL)),
    (2, "no SSH", rules(ANY_EGRESS, DNS, PING, MYSQL)),
    (1, "SSH for IPv4 only", rules(ANY_EGRESS, SSH4, DNS, PING, MYSQL)),
    (0, "SSH under another id", rules(ANY_EGRESS, replace(SSH, id="s"), DNS, PING, MYSQL)),
    (0, "SSH within all of ingress", rules(ANY_EGRESS, ANY_INGRESS)),
    (2, "SSH at another port", rules(ANY_EGRESS, replace(SSH, ports=(23, 23)), DNS, PING, MYSQL)),
    (0, "no egress: nothing was opened by it", rules(SSH, DNS, PING, MYSQL)),
    (1, "no DNS", rules(ANY_EGRESS, SSH, PING, MYSQL)),
    (1, "no ping", rules(ANY_EGRESS, SSH, DNS, MYSQL)),
    (5, "no rule at all", rules()),
    (1, "a member less", lambda world: patch(world, removed=[WEB4])),
    (0, "a member less that has no flow", lambda world: patch(world, removed=[WEB6])),
    (1, "a set without members", lambda world: {"sets": (world.members("web"),)}),
    (1, "a set that is gone", lambda _: {"removed_sets": ("web",)}),
    (0, "one more group", lambda world: {"servers": (world.binding(DB, "db", "more"),)}),
    (4, "another group, which keeps one", lambda world: {"servers": (world.binding(DB, "more"),)}),
    (4, "an address less", lambda world: {"servers": (world.binding(DB, "db", addresses=(MINE6,)),)}),
    (1, "the other address less", lambda world: {"servers": (world.binding(DB, "db", addresses=(MINE,)),)}),
    (5, "a server less", lambda _: {"removed_servers": (DB,)}),
    (1, "the other server less", lambda _: {"removed_servers": (WEB,)}),
    (0, "a server less that is not here", lambda _: {"removed_servers": ("p/nobody",)}),
    (0, "a snapshot of the same", everything_but()),
    (5, "a snapshot without a server", everything_but(servers=(DB,))),
    (6, "a snapshot of nothing", lambda _: {"snapshot": True}),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "change"), [case[::2] for case in CHANGES], ids=[case[1] for case in CHANGES])
def test_a_change_cuts_as_many_flows_as_was_told_and_telling_changes_nothing(engine, expected, change):
    world = site(engine)
    in_force, stats = world.firewall.ruleset, world.firewall.stats(world.now_ns)
    assert count(world, **change(world)) == expected
    assert (world.firewall.ruleset, world.firewall.stats(world.now_ns)) == (in_force, stats)
    dropped = world.apply(**change(world)).flows_dropped
    # One packet of each flow finds out what became of it.
    probes = [replace(each, tcp_flags=ACK) if each.protocol == TCP else each for each in FLOWS]
    passing = world.reasons(*probes).count("ESTABLISHED")
    assert (len(FLOWS) - passing, dropped <= expected) == (expected, True)


def test_a_group_whose_rules_are_not_held_lets_nothing_pass(engine):
    world = site(engine)
    assert count(world, removed_groups=("db",)) == 5
    world.apply(removed_groups=("db",))
    assert count(world, removed_servers=(DB,)) == 0


def test_what_does_not_pass_any_more_can_not_be_cut(engine):
    world = site(engine)
    world.set_rules(ANY_EGRESS, SSH, PING)
    # The query has not found out yet, nor has the flow from WEB; the login goes on.
    assert count(world, removed_servers=(DB,)) == 3
    assert world.reasons(QUERY) == ["REVOKED"]
    assert count(world, removed_servers=(DB,)) == 3
    world.set_rules(ANY_EGRESS, SSH, PING, DNS)
    # Allowed again, but not resumed; the silent one from WEB is still not allowed.
    assert count(world, removed_servers=(DB,)) == 3
    assert world.reasons(QUERY) == ["ESTABLISHED"]
    assert count(world, removed_servers=(DB,)) == 4


def test_a_flow_that_is_over_can_not_be_cut(engine):
    world = site(engine)
    world.advance(29)
    assert count(world, removed_servers=(DB,)) == 5
    world.advance(1)
    assert count(world, removed_servers=(DB,)) == 4  # The ping.
    world.advance(90)
    assert count(world, removed_servers=(DB,)) == 3  # The query.


def test_a_flow_of_the_servers_own_is_cut_with_the_egress_rule_whatever_ingress_allows(engine):
    world = World(engine, ANY_EGRESS, SSH)
    out = tcp(MINE, CLIENT, 443)
    world.connect(out)
    world.connect(LOGIN)
    assert count(world, groups=(world.group("db", SSH, ANY_INGRESS),)) == 1
    assert count(world, groups=(world.group("db", SSH),)) == 1
    assert count(world, groups=(world.group("db", ANY_EGRESS),)) == 1
    assert count(world, groups=(world.group("db"),)) == 2


def test_half_open_flows_count(engine):
    world = World(engine, SSH)
    world.decide(LOGIN)
    assert count(world, groups=(world.group("db"),)) == 1
    assert world.reasons(reply(LOGIN, tcp_flags=SYN_ACK)) == ["ESTABLISHED"]


def test_a_patch_of_what_is_not_held_is_refused_at_once(engine):
    world = site(engine)
    wrong = RulesetUpdate(revision=9, set_patches=(AddressSetPatch(group_id="web", base_version=99, version=100),))
    with pytest.raises(BaseVersionError):
        world.firewall.count_cut(wrong, world.now_ns)
    with pytest.raises(BaseVersionError):
        world.firewall.counting_cut(wrong, world.now_ns)


def test_the_count_goes_in_slices_while_packets_and_changes_go_on(engine):
    world = World(engine, ANY_INGRESS)
    flows = 2 * CHECKS_PER_SLICE
    for port in range(1, flows + 1):
        world.firewall.decide(tcp(CLIENT, MINE, port, SYN), world.now_ns)
    counting = world.firewall.counting_cut(RulesetUpdate(revision=9, groups=(world.group("db", SSH),)), world.now_ns)
    slices = [next(counting)]
    assert 0 < slices[0] < CHECKS_PER_SLICE
    # What is opened and what is applied meanwhile does not disturb it.
    assert world.reasons(tcp(OTHER, MINE, 80)) == ["NEW"]
    world.set_rules(ANY_INGRESS, DNS)
    slices += counting
    assert slices == sorted(slices)
    assert slices[-1] - (flows - 1) in (0, 1)  # All but port 22, and perhaps the one that came meanwhile.
    assert len(slices) >= flows // CHECKS_PER_SLICE


def test_servers_that_are_not_touched_cost_nothing(engine):
    world = site(engine)
    update = RulesetUpdate(revision=9, groups=(world.group("web", ANY_EGRESS),))
    assert list(world.firewall.counting_cut(update, world.now_ns)) == [1]
