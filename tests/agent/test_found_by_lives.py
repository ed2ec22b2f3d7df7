"""What random lives (test_differential) have found, in as few packets as it takes."""

from __future__ import annotations

from dataclasses import replace

from agent_world import (
    ACK,
    ANY_EGRESS,
    CLIENT,
    DB,
    DNS,
    FIRST,
    INGRESS,
    LATER,
    RST,
    SSH,
    SYN_ACK,
    World,
    error_about,
    many_of,
    names,
    other,
    reply,
    rule,
    tcp,
    udp,
)

from secgroups.agent.flow import TCP, UDP

MINE = "10.0.0.9"
LOGIN, QUERY = tcp(CLIENT, MINE, 22), udp(CLIENT, MINE, 53)
# A slot of the compiled engine's wheel of deadlines.
SLOT_NS = 1 << 32


def test_a_syn_on_a_closed_flow_that_no_rule_allows_names_no_rule(engine):
    world = World(engine, SSH)
    assert world.reasons(LOGIN, reply(LOGIN, tcp_flags=RST)) == ["NEW", "ESTABLISHED"]
    verdict = world.decide(reply(LOGIN, tcp_flags=LOGIN.tcp_flags))
    assert (verdict.reason.name, verdict.rule_id) == ("NO_RULE", "")


def test_flows_that_are_over_are_found_behind_one_that_lives_for_days(engine):
    world = World(engine, SSH, DNS, flows_max=4)
    world.connect(LOGIN)
    # For 17 minutes nothing was opened. When it is looked at again, it would be put off into the slot that it comes from; those
    # that are over by then are in later ones.
    world.now_ns += 240 * SLOT_NS
    closed = [replace(LOGIN, source_port=number) for number in (1, 2, 3)]
    for each in closed:
        world.connect(each)
        world.reasons(replace(each, tcp_flags=RST))
    world.now_ns += 5 * SLOT_NS
    assert world.decide(QUERY).opened
    assert world.reason(replace(LOGIN, tcp_flags=ACK)).name == "ESTABLISHED"
    assert world.firewall.stats(world.now_ns).evicted == 0


def test_a_rule_that_is_given_other_content_goes_on_counting(engine):
    world = World(engine, SSH)
    world.decide(LOGIN)
    world.set_rules(rule(SSH.id, INGRESS, TCP, (22, 23)))
    world.decide(replace(LOGIN, source_port=9))
    assert world.firewall.rule_counts()[SSH.id].packets == 2


def test_first_fragments_outlive_a_warm_restart_with_other_bounds(engine):
    world = World(engine, rule("r", INGRESS, UDP), fragments_max=8)
    firsts = [replace(QUERY, fragment=FIRST, fragment_id=number) for number in range(6)]
    world.reasons(*firsts)
    world.restart(warm=True, flows_max=64, fragments_max=4)
    laters = [replace(first, fragment=LATER, source_port=0, destination_port=0) for first in firsts]
    # The first opened the flow that the others belong to; the two oldest of them are gone.
    assert world.reasons(*laters) == ["UNKNOWN_FRAGMENT"] * 2 + ["ESTABLISHED"] * 4
    assert world.firewall.stats(world.now_ns).fragments == 4


def test_a_revoked_flow_names_its_rule_in_packed_verdicts_after_a_warm_restart_with_other_bounds(engine):
    world = World(engine, SSH)
    world.connect(LOGIN)
    world.set_rules(ANY_EGRESS)
    world.restart(warm=True, flows_max=64)
    (answer,) = many_of(world, replace(LOGIN, tcp_flags=ACK))
    assert (answer.verdict.reason.name, answer.verdict.rule_id) == ("REVOKED", SSH.id)


def test_ports_in_the_quote_of_a_protocol_that_has_none_do_not_count(engine):
    world = World(engine, rule("r", INGRESS, 47))
    tunnel = other(CLIENT, MINE, 47)
    about = error_about(tunnel, source=MINE)
    odd = replace(about, quoted=replace(about.quoted, destination_port=70_000))
    assert world.reasons(tunnel, odd) == ["NEW", "RELATED"]
    assert names(many_of(world, odd)) == [("RELATED", 8)]


def test_a_handshake_that_was_never_answered_is_not_one(engine):
    """The neighbour of the cases above: a SYN/ACK of the opener finds no place in its own flow."""
    world = World(engine, SSH)
    assert world.reasons(LOGIN, replace(LOGIN, tcp_flags=SYN_ACK)) == ["NEW", "INVALID_STATE"]
    assert world.firewall.flows.held_by(DB) == 1
