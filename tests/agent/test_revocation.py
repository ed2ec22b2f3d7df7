"""Section 4: what a change of rules does to flows that are under way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_world import (
    ACK,
    ANY_EGRESS,
    ANY_INGRESS,
    CLIENT,
    DB,
    DNS,
    EGRESS,
    FIN_ACK,
    INGRESS,
    PING,
    SSH,
    SYN,
    SYN_ACK,
    WEB,
    World,
    icmp,
    other,
    reply,
    rule,
    tcp,
    udp,
)

from secgroups.agent.flow import TCP

MINE, WEB4 = "10.0.0.9", "10.0.0.5"
LOGIN, QUERY, PINGED = tcp(CLIENT, MINE, 22), udp(CLIENT, MINE, 53), icmp(CLIENT, MINE, 8)
TYPED, SHOWN = replace(LOGIN, tcp_flags=ACK), reply(LOGIN, tcp_flags=ACK)
GRE = rule("g", INGRESS, 47)
TUNNEL = other(CLIENT, MINE, 47)


def logged_in(engine, *rules):
    world = World(engine, *(rules or (SSH, ANY_EGRESS)))
    world.connect(LOGIN)
    return world


def test_the_next_packet_of_either_direction_is_denied_when_the_rule_is_gone(engine):
    for first, second in ((TYPED, SHOWN), (SHOWN, TYPED)):
        world = logged_in(engine)
        world.set_rules(ANY_EGRESS)
        for asked in (first, second, first):
            verdict = world.decide(asked)
            assert (verdict.reason.name, verdict.rule_id) == ("REVOKED", SSH.id)


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.set_rules(ANY_EGRESS),
        lambda world: world.set_rules(replace(SSH, ports=(23, 23))),
        lambda world: world.set_rules(rule("n", INGRESS, TCP, 22, "198.51.100.0/24")),
        lambda world: world.bind(DB, "empty"),
        lambda world: world.apply(groups=(world.group("db"),)),
    ],
)
def test_any_way_of_losing_the_rule_revokes(engine, change):
    world = logged_in(engine)
    world.apply(groups=(world.group("empty"),))
    change(world)
    assert world.reason(TYPED).name == "REVOKED"


def test_a_member_that_leaves_a_remote_group_is_cut_off(engine):
    world = World(engine, rule("r", INGRESS, TCP, 3306, "group:web"))
    world.apply(sets=(world.members("web", WEB4, "10.0.0.6"),))
    connections = [tcp(address, MINE, 3306) for address in (WEB4, "10.0.0.6")]
    for syn in connections:
        world.connect(syn)
    world.apply(sets=(world.members("web", WEB4),))
    assert world.reasons(*(replace(syn, tcp_flags=ACK) for syn in connections)) == ["ESTABLISHED", "REVOKED"]


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.set_rules(SSH),
        lambda world: world.set_rules(ANY_EGRESS, SSH, DNS),
        lambda world: world.set_rules(rule("n", INGRESS, TCP, (1, 100), "203.0.113.0/24")),
        lambda world: world.bind(DB, "db", "more"),
        lambda world: world.bind(DB, "more"),
        lambda world: world.bind(DB, "db", addresses=(MINE, "10.0.0.10")),
        lambda world: world.bind(WEB, "db"),
        lambda world: world.apply(sets=(world.members("web", WEB4),)),
        lambda world: world.set_rules(),  # and back before the flow speaks
    ],
)
def test_a_change_that_leaves_the_verdict_of_a_flow_loses_no_packet_of_it(engine, change):
    world = logged_in(engine)
    world.apply(groups=(world.group("more", ANY_INGRESS),))
    change(world)
    if world.firewall.ruleset.groups["db"].rules == ():
        world.set_rules(SSH)
    assert world.reasons(TYPED, SHOWN, TYPED) == ["ESTABLISHED"] * 3


def test_a_flow_that_is_still_allowed_names_the_rule_that_allows_it_now(engine):
    world = logged_in(engine)
    world.set_rules(replace(SSH, id="y-ssh"), rule("x-ssh", INGRESS, TCP, 22))
    assert world.decide(SHOWN).rule_id == "x-ssh"
    world.set_rules()
    assert world.decide(SHOWN).rule_id == "x-ssh"  # by which it was last allowed


def test_a_flow_is_judged_by_its_opening_packet_alone(engine):
    world = World(engine, ANY_EGRESS)
    asked = udp(MINE, CLIENT, 53)
    world.open_answered(asked)
    world.set_rules(ANY_INGRESS)  # allows the answers, not the question
    assert world.reasons(reply(asked), asked) == ["REVOKED", "REVOKED"]


def test_a_revoked_udp_flow_is_not_reopened_through_the_egress_rule(engine):
    world = World(engine, DNS, ANY_EGRESS)
    world.open_answered(QUERY)
    world.set_rules(ANY_EGRESS)
    assert world.reasons(reply(QUERY), QUERY, reply(QUERY)) == ["REVOKED"] * 3


@pytest.mark.parametrize(
    ("seconds", "given", "opening"),
    [(120, DNS, QUERY), (300, SSH, LOGIN), (30, PING, PINGED), (30, GRE, TUNNEL)],
    ids=str,
)
class TestLifeOfARevokedFlow:
    """It lives on for a time of its own, which only the opener renews."""

    def revoked(self, engine, given, opening):
        world = World(engine, given, ANY_EGRESS)
        world.open_answered(opening)
        world.set_rules(ANY_EGRESS)
        return world, replace(opening, tcp_flags=ACK), reply(opening, tcp_flags=ACK)

    def test_it_ends_when_its_opener_has_been_silent_for_that_time(self, engine, seconds, given, opening):
        world, _, answer = self.revoked(engine, given, opening)
        assert world.reason(answer).name == "REVOKED"
        for wait_s in (seconds - 1, 0.999):
            world.advance(wait_s)
            assert world.reason(answer).name == "REVOKED"
        world.advance(0.001)
        expected = {LOGIN: "INVALID_STATE", PINGED: "INVALID_STATE"}.get(opening, "NEW")
        assert world.reason(answer).name == expected

    def test_its_opener_renews_it(self, engine, seconds, given, opening):
        world, again, answer = self.revoked(engine, given, opening)
        assert world.reason(again).name == "REVOKED"
        for _ in range(3):
            world.advance(seconds - 1)
            assert world.reasons(answer, again) == ["REVOKED", "REVOKED"]
        world.advance(seconds)
        assert world.reason(replace(opening)).name == "NO_RULE"

    def test_a_new_epoch_that_does_not_allow_it_does_not_renew_it(self, engine, seconds, given, opening):
        world, _, answer = self.revoked(engine, given, opening)
        assert world.reason(answer).name == "REVOKED"
        world.advance(seconds - 1)
        world.set_rules(ANY_EGRESS, rule("unrelated", INGRESS, TCP, 9999))
        assert world.reason(answer).name == "REVOKED"
        world.advance(1)
        assert world.reason(answer).name != "REVOKED"


def test_after_its_life_a_packet_of_the_server_is_its_own_new_flow(engine):
    world = World(engine, DNS, ANY_EGRESS)
    world.open_answered(QUERY)
    world.set_rules(ANY_EGRESS)
    world.reason(QUERY)
    world.advance(120)
    verdict = world.decide(reply(QUERY))
    assert (verdict.reason.name, verdict.opened, verdict.rule_id) == ("NEW", True, ANY_EGRESS.id)
    assert world.reason(QUERY).name == "ESTABLISHED"


def test_a_flow_that_is_allowed_again_resumes_in_its_old_state(engine):
    world = logged_in(engine)
    assert world.reason(replace(LOGIN, tcp_flags=FIN_ACK)).name == "ESTABLISHED"
    world.bind(DB, "empty")
    world.apply(groups=(world.group("empty"),))
    assert world.reasons(SHOWN, TYPED) == ["REVOKED", "REVOKED"]
    world.bind(DB, "db")
    assert world.firewall.stats(world.now_ns).flows_by_state == {"REVOKED": 1}  # until it speaks
    assert world.reason(reply(LOGIN, tcp_flags=FIN_ACK)).name == "ESTABLISHED"
    assert world.firewall.stats(world.now_ns).flows_by_state == {"LAST_ACK": 1}


def test_a_flow_that_resumes_has_the_whole_time_of_its_state_before_it(engine):
    world = World(engine, DNS)
    world.reason(QUERY)
    world.set_rules()
    world.reason(QUERY)
    world.advance(100)
    world.set_rules(DNS)
    assert world.reason(QUERY).name == "ESTABLISHED"
    world.advance(29.999)
    assert world.flow_count() == 1
    world.advance(0.001)
    assert world.flow_count() == 0


def test_a_silent_flow_whose_rule_comes_back_before_it_speaks_never_noticed(engine):
    world = logged_in(engine)
    world.set_rules()
    world.advance(400)  # longer than a revoked flow lives
    world.set_rules(SSH)
    assert world.reason(SHOWN).name == "ESTABLISHED"


def test_an_opening_syn_on_a_revoked_flow_is_judged_as_new(engine):
    world = logged_in(engine)
    world.set_rules(ANY_EGRESS)
    assert world.reasons(LOGIN, TYPED, LOGIN, SHOWN) == ["NO_RULE", "REVOKED", "NO_RULE", "REVOKED"]
    world.set_rules(SSH)
    verdict = world.decide(LOGIN)
    assert (verdict.reason.name, verdict.opened) == ("NEW", True)
    assert world.firewall.stats(world.now_ns).flows_by_state == {"SYN_SENT": 1}


def test_a_denied_opening_syn_keeps_a_revoked_flow_revoked_and_renews_it(engine):
    world = logged_in(engine)
    world.set_rules(ANY_EGRESS)
    world.reason(SHOWN)
    world.advance(299)
    assert world.reason(LOGIN).name == "NO_RULE"
    world.advance(299)
    assert world.reason(SHOWN).name == "REVOKED"
    world.advance(1)
    assert world.reason(SHOWN).name == "INVALID_STATE"


def test_a_syn_of_the_server_does_not_reopen_a_revoked_flow(engine):
    world = logged_in(engine)
    world.set_rules(ANY_EGRESS)
    back = reply(LOGIN, tcp_flags=SYN)
    assert world.reasons(back, TYPED, back) == ["REVOKED"] * 3


def test_a_syn_of_the_server_on_a_closed_flow_that_is_found_revoked_opens_nothing(engine):
    world = logged_in(engine)
    assert world.reason(replace(LOGIN, tcp_flags=0x04)).name == "ESTABLISHED"
    world.set_rules(ANY_EGRESS)
    assert world.reason(reply(LOGIN, tcp_flags=SYN)).name == "REVOKED"


def test_a_half_open_connection_that_is_revoked_does_not_complete(engine):
    world = World(engine, SSH, ANY_EGRESS)
    world.reason(LOGIN)
    world.set_rules(ANY_EGRESS)
    assert world.reasons(reply(LOGIN, tcp_flags=SYN_ACK), TYPED) == ["REVOKED", "REVOKED"]


def test_a_flow_that_is_revoked_and_allowed_many_times_goes_on_each_time(engine):
    world = logged_in(engine)
    for _ in range(3):
        world.set_rules(ANY_EGRESS)
        assert world.reasons(TYPED, SHOWN) == ["REVOKED", "REVOKED"]
        world.set_rules(SSH, ANY_EGRESS)
        assert world.reasons(SHOWN, TYPED) == ["ESTABLISHED", "ESTABLISHED"]


class TestAddressesAndServers:
    """What is taken away takes its flows with it."""

    def test_a_server_loses_its_flows_on_an_address_that_is_taken_away(self, engine):
        world = World(engine, SSH)
        world.bind(DB, "db", addresses=(MINE, "10.0.0.10"))
        kept, lost = LOGIN, tcp(CLIENT, "10.0.0.10", 22, at=DB, direction=INGRESS)
        world.connect(kept)
        world.connect(lost)
        applied = world.bind(DB, "db", addresses=(MINE,))
        assert (applied.flows_dropped, world.flow_count()) == (1, 1)
        assert world.reasons(TYPED, replace(lost, tcp_flags=ACK)) == ["ESTABLISHED", "NOT_LOCAL"]
        world.bind(DB, "db", addresses=(MINE, "10.0.0.10"))
        assert world.reason(replace(lost, tcp_flags=ACK)).name == "INVALID_STATE"

    def test_a_server_that_is_removed_loses_all_its_flows(self, engine):
        world = logged_in(engine)
        applied = world.apply(removed_servers=(DB, "p/nobody"))
        assert (applied.flows_dropped, applied.servers_removed, world.flow_count()) == (1, {DB}, 0)
        assert world.reason(TYPED).name == "UNKNOWN_SERVER"
        world.bind(DB, "db")
        assert world.reasons(TYPED, LOGIN) == ["INVALID_STATE", "NEW"]

    def test_the_end_of_a_snapshot_removes_what_it_does_not_mention(self, engine):
        world = logged_in(engine)
        applied = world.apply(snapshot=True, groups=(world.group("web", ANY_INGRESS),), servers=(world.binding(WEB, "web"),))
        assert (applied.servers_removed, applied.servers_touched, applied.flows_dropped) == ({DB}, {WEB}, 1)
        assert world.reasons(TYPED, tcp(CLIENT, WEB4, 80)) == ["UNKNOWN_SERVER", "NEW"]

    def test_a_server_that_stays_in_a_snapshot_keeps_its_flows(self, engine):
        world = logged_in(engine)
        world.apply(snapshot=True, groups=(world.group("db", SSH),), servers=(world.binding(DB, "db"),))
        assert world.reason(TYPED).name == "ESTABLISHED"


def test_egress_flows_are_revoked_as_ingress_flows_are(engine):
    web = rule("w", EGRESS, TCP, 443)
    world = World(engine, web, SSH)
    syn = tcp(MINE, CLIENT, 443)
    world.connect(syn)
    world.set_rules(SSH)
    assert world.reasons(reply(syn, tcp_flags=ACK), replace(syn, tcp_flags=ACK), syn) == ["REVOKED", "REVOKED", "NO_RULE"]
