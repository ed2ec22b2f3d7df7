"""Row 8: ICMP errors about flows."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from agent_world import (
    ANY_EGRESS,
    CLIENT,
    CLIENT6,
    DNS,
    OTHER,
    SSH,
    SYN_ACK,
    World,
    error_about,
    icmp,
    quote,
    reply,
    rule,
    tcp,
    udp,
)

from secgroups.agent.flow import ICMP

MINE, MINE6 = "10.0.0.9", "2001:db8::9"
OUT, IN = udp(MINE, CLIENT, 53), udp(CLIENT, MINE, 53)


@pytest.mark.parametrize(
    "opening",
    [OUT, udp(MINE6, CLIENT6, 53), tcp(MINE, CLIENT, 22), icmp(MINE, CLIENT, 8), icmp(MINE6, CLIENT6, 128)],
    ids=str,
)
def test_an_error_about_what_the_server_sent_is_let_in_from_anywhere(engine, opening):
    world = World(engine, ANY_EGRESS)
    error = error_about(opening, source="192.0.2.254" if opening.source.version == 4 else "2001:db8:f::1")
    assert world.reason(error).name == "NO_RULE"
    world.reason(opening)
    verdict = world.decide(error)
    assert (verdict.reason.name, verdict.rule_id, verdict.opened) == ("RELATED", ANY_EGRESS.id, False)


@pytest.mark.parametrize("opening", [IN, tcp(CLIENT, MINE, 22), icmp(CLIENT, MINE, 8)], ids=str)
def test_an_error_about_what_the_server_received_is_let_out(engine, opening):
    world = World(engine, SSH, DNS, rule("p", opening.direction, ICMP, icmp_type=8))
    world.reason(opening)
    assert world.reason(error_about(opening, source=MINE)).name == "RELATED"


@pytest.mark.parametrize(
    "answer",
    [reply(IN), reply(tcp(CLIENT, MINE, 22), tcp_flags=SYN_ACK), reply(icmp(CLIENT, MINE, 8))],
    ids=str,
)
def test_an_error_about_an_answer_is_related_once_that_was_sent(engine, answer):
    world = World(engine, SSH, DNS, rule("p", IN.direction, ICMP, icmp_type=8))
    opening = replace(reply(answer), tcp_flags=0x02 if answer.protocol == 6 else 0, icmp_type=8 if answer.protocol == 1 else 0)
    assert world.decide(opening).opened
    assert world.reason(error_about(answer)).name == "NO_RULE"  # nobody has sent that yet
    assert world.reasons(answer, error_about(answer)) == ["ESTABLISHED", "RELATED"]


@pytest.mark.parametrize(
    "error",
    [
        error_about(replace(OUT, destination_port=54)),
        error_about(replace(OUT, source_port=40_001)),
        error_about(replace(OUT, destination=ip_address(OTHER))),
        error_about(tcp(MINE, CLIENT, 53)),
        # the quoted packet is one that the server received, not one that it sent
        replace(error_about(OUT), quoted=quote(reply(OUT))),
        # sent to another address than that of who sent the quoted packet
        replace(error_about(OUT), destination=ip_address("10.0.0.10")),
        replace(error_about(OUT), icmp_type=9),  # no error
    ],
    ids=str,
)
def test_an_error_about_something_else_is_judged_by_the_rules(engine, error):
    world = World(engine, ANY_EGRESS)
    world.bind("p/db", "db", addresses=(MINE, "10.0.0.10"))
    world.reasons(OUT, reply(OUT))
    assert world.reason(error).name == "NO_RULE"
    world.set_rules(ANY_EGRESS, rule("icmp", error.direction, ICMP))
    verdict = world.decide(error)
    assert (verdict.reason.name, verdict.rule_id, verdict.opened) == ("NEW", "icmp", False)


@pytest.mark.parametrize("icmp_type", [3, 4, 5, 11, 12])
def test_every_type_of_error_is_related(engine, icmp_type):
    world = World(engine, ANY_EGRESS)
    world.reason(OUT)
    assert world.reason(replace(error_about(OUT), icmp_type=icmp_type)).name == "RELATED"


def test_an_error_about_a_flow_that_is_over_is_not_related(engine):
    world = World(engine, ANY_EGRESS)
    world.reason(OUT)
    world.advance(29.999)
    assert world.reason(error_about(OUT)).name == "RELATED"
    world.advance(0.001)
    assert world.reason(error_about(OUT)).name == "NO_RULE"


def test_an_error_does_not_renew_or_answer_or_count_in_its_flow(engine):
    world = World(engine, ANY_EGRESS)
    world.reason(OUT)
    (before,) = world.firewall.flows.live(world.now_ns)
    world.advance(20)
    world.reason(error_about(OUT))
    assert list(world.firewall.flows.live(world.now_ns)) == [before]


def test_the_flow_is_judged_first_if_its_epoch_is_old(engine):
    world = World(engine, ANY_EGRESS)
    world.reason(OUT)
    world.set_rules()
    assert world.reason(error_about(OUT)).name == "NO_RULE"
    assert world.firewall.stats(world.now_ns).flows_by_state == {"REVOKED": 1}
    assert world.reason(error_about(OUT)).name == "NO_RULE"
    world.set_rules(rule("other", ANY_EGRESS.direction))
    verdict = world.decide(error_about(OUT))
    assert (verdict.reason.name, verdict.rule_id) == ("RELATED", "other")
    assert world.firewall.stats(world.now_ns).flows_by_state == {"UNANSWERED": 1}


def test_an_error_of_a_revoked_flow_may_still_pass_by_a_rule(engine):
    world = World(engine, ANY_EGRESS)
    world.reason(OUT)
    world.set_rules(rule("icmp", error_about(OUT).direction, ICMP))
    assert world.decide(error_about(OUT)).rule_id == "icmp"
    assert world.reason(OUT).name == "REVOKED"


def test_a_flow_that_resumes_by_an_error_has_the_time_of_its_state_before_it(engine):
    world = World(engine, ANY_EGRESS)
    world.reason(OUT)
    world.set_rules()
    assert world.reason(OUT).name == "REVOKED"
    world.set_rules(ANY_EGRESS)
    assert world.reason(error_about(OUT)).name == "RELATED"
    world.advance(29.999)
    assert world.flow_count() == 1
    world.advance(0.001)
    assert world.flow_count() == 0


def test_being_judged_again_does_not_renew_a_flow_that_was_allowed_all_the_time(engine):
    world = World(engine, ANY_EGRESS)
    world.reason(OUT)
    world.advance(20)
    world.set_rules(ANY_EGRESS, SSH)
    assert world.reason(error_about(OUT)).name == "RELATED"
    world.advance(10)
    assert world.flow_count() == 0
