"""Row 9: what belongs to a flow, how long it lives, what TCP may do in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_world import (
    ACK,
    ANY_EGRESS,
    ANY_INGRESS,
    CLIENT,
    CLIENT6,
    DNS,
    FIN_ACK,
    OTHER,
    PING,
    PING6,
    RST,
    RST_ACK,
    SSH,
    SYN,
    SYN_ACK,
    World,
    icmp,
    other,
    reply,
    tcp,
    udp,
)

from secgroups.agent.flow import SCTP
from secgroups.agent.table import OPENED_SHIFT

MINE, MINE6 = "10.0.0.9", "2001:db8::9"


@pytest.mark.parametrize(
    ("given", "opening"),
    [
        (SSH, tcp(CLIENT, MINE, 22)),
        (SSH, tcp(CLIENT6, MINE6, 22)),
        (DNS, udp(CLIENT, MINE, 53)),
        (ANY_EGRESS, udp(MINE, CLIENT, 53)),
        (PING, icmp(CLIENT, MINE, 8)),
        (PING6, icmp(CLIENT6, MINE6, 128)),
        (ANY_EGRESS, icmp(MINE, CLIENT, 13)),
        (ANY_EGRESS, other(MINE, CLIENT, 47)),
        (ANY_EGRESS, other(MINE, CLIENT, SCTP, source_port=5, destination_port=6)),
    ],
    ids=str,
)
def test_the_answer_passes_whatever_the_rules_of_its_direction_say(engine, given, opening):
    world = World(engine, given)
    answer = reply(opening, tcp_flags=SYN_ACK)
    assert world.reason(answer).name in {"NO_RULE", "INVALID_STATE"}
    assert world.decide(opening).rule_id == given.id
    verdict = world.decide(answer)
    assert (verdict.reason.name, verdict.rule_id, verdict.opened) == ("ESTABLISHED", given.id, False)


@pytest.mark.parametrize(
    "changed",
    [
        {"source_port": 54},
        {"destination_port": 40_001},
        {"source": udp(OTHER, MINE, 53).source},
        {"protocol": SCTP},
    ],
    ids=str,
)
def test_a_packet_with_another_tuple_is_of_another_flow(engine, changed):
    world = World(engine, ANY_EGRESS)
    opening = udp(MINE, CLIENT, 53)
    assert world.decide(opening).opened
    assert world.reason(replace(reply(opening), **changed)).name == "NO_RULE"
    assert world.reason(reply(opening)).name == "ESTABLISHED"


class TestIcmp:
    """A request and its replies are a flow; a request the other way is one of its own."""

    def test_only_the_matching_reply_type_and_identifier_is_the_reply(self, engine):
        world = World(engine, ANY_EGRESS)
        assert world.decide(icmp(MINE, CLIENT, 8)).opened
        assert world.reasons(
            icmp(CLIENT, MINE, 0),
            icmp(CLIENT, MINE, 0, icmp_id=8),
            icmp(CLIENT, MINE, 14),
            icmp(OTHER, MINE, 0),
        ) == ["ESTABLISHED", "INVALID_STATE", "INVALID_STATE", "INVALID_STATE"]

    def test_a_request_in_the_other_direction_is_not_the_reply(self, engine):
        world = World(engine, ANY_EGRESS)
        assert world.reasons(icmp(MINE, CLIENT, 8), icmp(CLIENT, MINE, 8)) == ["NEW", "NO_RULE"]

    def test_requests_both_ways_with_one_identifier_are_two_flows(self, engine):
        world = World(engine, ANY_EGRESS, PING)
        assert world.decide(icmp(MINE, CLIENT, 8)).rule_id == ANY_EGRESS.id
        assert world.decide(icmp(CLIENT, MINE, 8)).rule_id == PING.id
        assert world.flow_count() == 2
        assert world.decide(icmp(CLIENT, MINE, 0)).rule_id == ANY_EGRESS.id
        assert world.decide(icmp(MINE, CLIENT, 0)).rule_id == PING.id

    def test_a_repeated_request_is_of_the_same_flow(self, engine):
        world = World(engine, PING)
        assert world.reasons(icmp(CLIENT, MINE, 8), icmp(CLIENT, MINE, 8)) == ["NEW", "ESTABLISHED"]

    def test_request_types_with_one_identifier_are_two_flows(self, engine):
        world = World(engine, ANY_EGRESS)
        assert world.reasons(icmp(MINE, CLIENT, 8), icmp(MINE, CLIENT, 13)) == ["NEW", "NEW"]


def over_at(engine, given, seconds, *packets):
    """Return the verdicts on the last packet ``seconds`` after the others, and one millisecond before that."""
    verdicts = []
    for wait_s in (seconds - 0.001, seconds):
        world = World(engine, *given)
        for sent in packets:
            world.reason(sent)
        world.advance(wait_s)
        verdicts.append(world.reason(packets[-1]).name)
    return verdicts


QUERY, GRE, PINGED = udp(CLIENT, MINE, 53), other(MINE, CLIENT, 47), icmp(CLIENT, MINE, 8)


@pytest.mark.parametrize(
    ("seconds", "given", "packets"),
    [
        (30, [DNS], [QUERY]),
        (120, [DNS], [QUERY, reply(QUERY), QUERY]),
        (30, [PING], [PINGED]),
        (30, [PING], [PINGED, reply(PINGED), PINGED]),
        (600, [ANY_EGRESS], [GRE]),
        (600, [ANY_EGRESS], [GRE, reply(GRE), GRE]),
    ],
    ids=str,
)
def test_a_flow_is_over_at_its_deadline(engine, seconds, given, packets):
    assert over_at(engine, given, seconds, *packets) == ["ESTABLISHED", "NEW"]


def test_every_packet_of_either_direction_renews_a_flow(engine):
    world = World(engine, DNS)
    assert world.reasons(QUERY, reply(QUERY)) == ["NEW", "ESTABLISHED"]
    for sent in (QUERY, reply(QUERY), reply(QUERY), QUERY):
        world.advance(119)
        assert world.reason(sent).name == "ESTABLISHED"
    world.advance(120)
    assert world.reason(reply(QUERY)).name == "NO_RULE"


SYN_IN = tcp(CLIENT, MINE, 22)
OPEN = [SYN_IN, reply(SYN_IN, tcp_flags=SYN_ACK), replace(SYN_IN, tcp_flags=ACK)]
C_ACK, S_ACK = replace(SYN_IN, tcp_flags=ACK), reply(SYN_IN, tcp_flags=ACK)
C_FIN, S_FIN = replace(SYN_IN, tcp_flags=FIN_ACK), reply(SYN_IN, tcp_flags=FIN_ACK)
C_RST, S_RST = replace(SYN_IN, tcp_flags=RST), reply(SYN_IN, tcp_flags=RST_ACK)
S_SYN, S_SYN_ACK, C_SYN_ACK = reply(SYN_IN), OPEN[1], replace(SYN_IN, tcp_flags=SYN_ACK)


@pytest.mark.parametrize(
    ("state", "seconds", "packets"),
    [
        ("SYN_SENT", 120, OPEN[:1]),
        ("SYN_SENT2", 120, [SYN_IN, S_SYN]),
        ("SYN_RECV", 60, OPEN[:2]),
        ("SYN_RECV", 60, [SYN_IN, S_SYN, C_SYN_ACK]),
        ("ESTABLISHED", 432_000, OPEN),
        ("FIN_WAIT", 120, [*OPEN, C_FIN]),
        ("CLOSE_WAIT", 60, [*OPEN, C_FIN, S_ACK]),
        ("LAST_ACK", 30, [*OPEN, C_FIN, S_FIN]),
        ("LAST_ACK", 30, [*OPEN, S_FIN, C_ACK, C_FIN]),
        ("TIME_WAIT", 120, [*OPEN, C_FIN, S_FIN, C_ACK]),
        ("CLOSE", 10, [*OPEN, S_RST]),
        ("CLOSE", 10, [SYN_IN, S_RST]),
    ],
    ids=str,
)
def test_tcp_goes_through_its_states_and_each_has_its_time(engine, state, seconds, packets):
    world = World(engine, SSH)
    assert world.reasons(*packets) == ["NEW"] + ["ESTABLISHED"] * (len(packets) - 1)
    assert world.firewall.stats(world.now_ns).flows_by_state == {state: 1}
    world.advance(seconds - 0.001)
    assert world.flow_count() == 1
    world.advance(0.001)
    assert world.flow_count() == 0
    assert world.reason(C_ACK).name == "INVALID_STATE"


@pytest.mark.parametrize(
    ("packets", "asked"),
    [
        (OPEN[:1], C_ACK),  # before the SYN/ACK
        (OPEN[:1], C_FIN),
        (OPEN[:1], S_FIN),
        (OPEN[:1], C_SYN_ACK),
        (OPEN, S_SYN),
        (OPEN, C_SYN_ACK),
        ([SYN_IN, S_SYN], C_ACK),
    ],
    ids=str,
)
def test_a_segment_without_place_is_denied_and_the_state_is_kept(engine, packets, asked):
    world = World(engine, SSH)
    assert "INVALID_STATE" not in world.reasons(*packets)
    before = world.firewall.stats(world.now_ns).flows_by_state
    assert world.reason(asked).name == "INVALID_STATE"
    assert world.firewall.stats(world.now_ns).flows_by_state == before


@pytest.mark.parametrize(
    ("packets", "asked", "seconds"),
    [
        (OPEN[:1], S_ACK, 120),  # a challenge to a SYN
        (OPEN[:2], SYN_IN, 60),
        (OPEN[:2], S_SYN_ACK, 60),
        ([*OPEN, C_FIN], SYN_IN, 120),
        ([*OPEN, C_FIN, S_FIN], SYN_IN, 30),
        ([*OPEN, C_FIN, S_FIN], S_SYN_ACK, 30),
    ],
    ids=str,
)
def test_what_the_kernel_ignores_passes_but_does_not_renew(engine, packets, asked, seconds):
    world = World(engine, SSH)
    world.reasons(*packets)
    before = world.firewall.stats(world.now_ns).flows_by_state
    world.advance(seconds - 1)
    assert world.reason(asked).name == "ESTABLISHED"
    assert world.firewall.stats(world.now_ns).flows_by_state == before
    world.advance(1)
    assert world.flow_count() == 0


CLOSED = {"TIME_WAIT": [*OPEN, C_FIN, S_FIN, C_ACK], "CLOSE": [*OPEN, C_RST]}


@pytest.mark.parametrize("packets", CLOSED.values(), ids=CLOSED)
class TestSynOnAClosedFlow:
    """It is judged as new, from whichever end it comes."""

    def test_it_opens_a_flow_if_a_rule_allows_it(self, engine, packets):
        world = World(engine, SSH)
        world.reasons(*packets)
        assert world.decide(SYN_IN).opened
        assert world.firewall.stats(world.now_ns).flows_by_state == {"SYN_SENT": 1}
        assert world.reasons(S_SYN_ACK, C_ACK) == ["ESTABLISHED", "ESTABLISHED"]

    def test_of_the_answering_end_it_needs_a_rule_of_its_own_direction(self, engine, packets):
        world = World(engine, SSH)
        world.reasons(*packets)
        before = world.firewall.stats(world.now_ns).flows_by_state
        assert world.reason(S_SYN).name == "NO_RULE"
        assert world.firewall.stats(world.now_ns).flows_by_state == before

    def test_of_the_answering_end_it_turns_the_flow_round(self, engine, packets):
        world = World(engine, SSH, ANY_EGRESS)
        world.reasons(*packets)
        verdict = world.decide(S_SYN)
        assert (verdict.rule_id, verdict.opened) == (ANY_EGRESS.id, True)
        assert world.reasons(C_SYN_ACK, S_ACK) == ["ESTABLISHED", "ESTABLISHED"]
        assert world.flow_count() == 1

    def test_it_is_denied_when_its_rule_is_gone(self, engine, packets):
        world = World(engine, SSH)
        world.reasons(*packets)
        world.set_rules()
        assert world.reason(SYN_IN).name == "NO_RULE"

    def test_it_needs_no_room(self, engine, packets):
        world = World(engine, ANY_INGRESS, server_flows_max=4)
        world.reasons(*packets)
        for port in range(1, 4):
            world.connect(tcp(CLIENT, MINE, port))
        assert world.reason(tcp(CLIENT, MINE, 9)).name == "TABLE_FULL"
        assert world.decide(SYN_IN).opened


def test_a_flow_counts_what_it_let_through_each_way(engine):
    world = World(engine, SSH)
    world.reasons(*OPEN, C_ACK, S_SYN, replace(S_ACK, length=1500))
    (flow,) = world.firewall.flows.live(world.now_ns)
    assert (flow.opener_packets, flow.opener_bytes, flow.answerer_packets, flow.answerer_bytes) == (3, 300, 2, 1600)


def test_a_flow_remembers_who_opened_it_and_under_which_rule(engine):
    world = World(engine, SSH)
    world.reason(tcp(CLIENT, MINE, 22, SYN))
    (flow,) = world.firewall.flows.live(world.now_ns)
    assert (flow.opening.direction.name, str(flow.opening.remote), flow.opening.port) == ("INGRESS", CLIENT, 22)
    assert (flow.rule_id, flow.group_id) == (SSH.id, "db")
    assert 0 <= world.now_ns - flow.opened_ns < 1 << OPENED_SHIFT
    assert world.reason(replace(C_RST, tcp_flags=RST)).name == "ESTABLISHED"
