"""A flow table in a file: flows, fragments, counts and times go on in the next process, whatever changed meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from agent_world import (
    ACK,
    ALLOW,
    ANY_EGRESS,
    CLIENT,
    CLIENT6,
    DB,
    DNS,
    FIRST,
    INGRESS,
    LATER,
    PING,
    PING6,
    SSH,
    WEB,
    Packet,
    World,
    error_about,
    icmp,
    other,
    reply,
    rule,
    tcp,
    udp,
)
from kept_world import KeptWorld

from secgroups.agent.flow import ICMP

MINE, MINE6 = "10.0.0.9", "2001:db8::9"
LOGIN, QUERY, ECHO = tcp(CLIENT, MINE, 22), udp(CLIENT, MINE, 53), icmp(CLIENT, MINE, 8)
TYPED, SHOWN = replace(LOGIN, tcp_flags=ACK), reply(LOGIN, tcp_flags=ACK)
FIRST_PART = udp(CLIENT, MINE, 53, fragment=FIRST, fragment_id=1, source_port=9)
LATER_PART = replace(FIRST_PART, fragment=LATER, source_port=0, destination_port=0)


def asked_of(server: str, address: str) -> Packet:
    return udp(CLIENT, address, 53, at=server, direction=INGRESS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "flows"


# ------------------------------------------------------------------------------------------------ what goes on


@pytest.mark.parametrize(
    ("opening", "then"),
    [
        (LOGIN, TYPED),
        (tcp(CLIENT6, MINE6, 22), tcp(CLIENT6, MINE6, 22, ACK)),
        (QUERY, reply(QUERY)),
        (ECHO, reply(ECHO)),
        (icmp(CLIENT6, MINE6, 128), reply(icmp(CLIENT6, MINE6, 128))),
        (icmp(MINE, CLIENT, 8), reply(icmp(MINE, CLIENT, 8))),
        (other(MINE, CLIENT, 47), other(CLIENT, MINE, 47)),
        (LOGIN, error_about(TYPED)),
    ],
    ids=str,
)
def test_a_flow_of_any_kind_goes_on_and_its_neighbour_does_not_appear(file: Path, opening: Packet, then: Packet) -> None:
    world = KeptWorld(file, SSH, DNS, PING, PING6, ANY_EGRESS)
    world.open_answered(opening)
    expected = world.explain(then).verdict
    world.reopen()
    assert world.table.refused == ""
    assert world.decide(then) == expected
    if then.quoted is None:
        stranger = replace(then, source_port=then.source_port + 1) if then.source_port else replace(then, icmp_id=8)
        if then.protocol != 47:
            assert world.reason(stranger) is not world.reason(then)


def test_a_revoked_flow_stays_revoked_and_resumes_when_its_rule_is_back(file: Path) -> None:
    world = KeptWorld(file, SSH, ANY_EGRESS)
    world.connect(LOGIN)
    world.set_rules(ANY_EGRESS)
    world.reopen()
    assert world.reasons(SHOWN, TYPED) == ["REVOKED", "REVOKED"]
    world.reopen()
    assert world.reasons(SHOWN, TYPED) == ["REVOKED", "REVOKED"]
    world.set_rules(SSH)
    world.reopen(judged=False)
    assert world.decide(SHOWN).rule_id == SSH.id


@pytest.mark.parametrize("judged", [True, False], ids=["judged by the same", "judged again"])
def test_what_is_told_of_a_flow_is_the_same_after_a_restart(file: Path, *, judged: bool) -> None:
    world = KeptWorld(file, SSH, DNS, ANY_EGRESS)
    world.connect(LOGIN)
    for asked in (QUERY, reply(QUERY), TYPED, SHOWN, SHOWN, udp(CLIENT, MINE, 53, source_port=5)):
        world.advance(3)
        world.decide(replace(asked, length=1500))
    before = sorted(world.firewall.live(world.now_ns), key=repr)
    world.reopen(judged=judged)
    after = sorted(world.firewall.live(world.now_ns), key=repr)
    assert len(before) == 3
    assert [replace(flow, epoch=0) for flow in after] == [replace(flow, epoch=0) for flow in before]
    if judged:
        assert after == before


def test_time_goes_on_while_the_agent_is_down(file: Path) -> None:
    world = KeptWorld(file, SSH, DNS)
    world.open_answered(QUERY)
    world.decide(replace(QUERY, source_port=5))
    held = world.down()
    world.advance(29)
    world.up(held)
    assert world.flow_count() == 2
    held = world.down()
    world.advance(2)
    world.up(held)
    assert (world.flow_count(), world.table.dropped) == (1, 0)
    assert world.reason(reply(QUERY)).name == "ESTABLISHED"
    held = world.down()
    world.advance(120)
    world.up(held)
    assert world.reason(reply(QUERY)).name == "NO_RULE"


def test_fragments_follow_their_first_one_if_nothing_changed_and_for_thirty_seconds(file: Path) -> None:
    world = KeptWorld(file, DNS)
    world.decide(FIRST_PART)
    world.reopen()
    assert world.decide(LATER_PART).rule_id == DNS.id
    assert world.reason(replace(LATER_PART, fragment_id=2)).name == "UNKNOWN_FRAGMENT"
    held = world.down()
    world.advance(30)
    world.up(held)
    assert world.reason(LATER_PART).name == "UNKNOWN_FRAGMENT"
    world.decide(replace(FIRST_PART, source_port=10))
    world.reopen(judged=False)
    assert world.reason(LATER_PART).name == "UNKNOWN_FRAGMENT"


def test_the_oldest_fragment_makes_room_first(file: Path) -> None:
    world = KeptWorld(file, DNS, fragments_max=4)
    for number in (3, 1, 4, 2, 5):
        world.advance(0.001)
        world.decide(replace(FIRST_PART, fragment_id=number))
    world.reopen()
    world.decide(replace(FIRST_PART, fragment_id=6))
    known = [number for number in range(1, 7) if world.reason(replace(LATER_PART, fragment_id=number)).action is ALLOW]
    assert known == [2, 4, 5, 6]


def test_unanswered_flows_make_room_in_the_order_of_their_opening(file: Path) -> None:
    world = KeptWorld(file, DNS, flows_max=4, server_flows_max=4)
    queries = [replace(QUERY, source_port=port) for port in (7, 3, 5, 1, 9, 2)]
    for asked in queries[:4]:
        world.advance(0.02)
        world.decide(asked)
    # The first entry of the table is now of the newest flow.
    world.advance(0.02)
    world.decide(queries[4])
    world.reopen()
    world.advance(0.02)
    world.decide(queries[5])
    alive = [asked.source_port for asked in queries if world.explain(asked).verdict.reason.name == "ESTABLISHED"]
    assert alive == [5, 1, 9, 2]


def test_a_smaller_share_keeps_the_answered_and_the_latest(file: Path) -> None:
    world = KeptWorld(file, DNS)
    queries = [replace(QUERY, source_port=port) for port in range(1, 9)]
    for asked in queries:
        world.advance(1)
        world.decide(asked)
    for asked in (queries[2], queries[0], queries[3]):
        world.advance(1)
        world.decide(reply(asked))
    world.reopen(server_flows_max=4)
    assert (world.table.held_by(DB), world.table.dropped) == (4, 4)
    alive = [asked.source_port for asked in queries if world.explain(asked).verdict.reason.name == "ESTABLISHED"]
    assert alive == [1, 3, 4, 8]


def test_the_loose_time_is_counted_from_the_cold_start(file: Path) -> None:
    world = KeptWorld(file, SSH, tcp_loose_s=60)
    world.advance(50)
    world.reopen()
    assert world.reason(TYPED).name == "NEW"
    world.advance(10)
    world.reopen(tcp_loose_s=600)
    assert world.reason(replace(TYPED, source_port=2)).name == "INVALID_STATE"
    world.down()
    file.unlink()
    world.up(world.firewall.ruleset)
    assert world.reason(replace(TYPED, source_port=2)).name == "NEW"


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_every_shard_goes_on(file: Path, shards: int) -> None:
    world = KeptWorld(file, DNS, shards=shards)
    names = [f"p/s{number}" for number in range(7)]
    for number, name in enumerate(names):
        world.bind(name, "db", addresses=(f"10.0.1.{number}",))
        world.open_answered(asked_of(name, f"10.0.1.{number}"))
    for _ in range(2):
        world.reopen()
        assert [world.table.held_by(name) for name in names] == [1] * 7
        for number, name in enumerate(names):
            assert world.reason(asked_of(name, f"10.0.1.{number}")).name == "ESTABLISHED"


# ------------------------------------------------------------------------------------------------ what changed meanwhile


def test_what_changed_while_the_agent_was_down_counts(file: Path) -> None:
    world = KeptWorld(file, SSH, DNS)
    world.connect(LOGIN)
    world.open_answered(QUERY)
    world.down()
    told = World("compiled", DNS)
    world.up(told.firewall.ruleset, judged=False)
    assert world.reasons(SHOWN, QUERY) == ["REVOKED", "ESTABLISHED"]


def test_a_server_or_an_address_that_went_while_the_agent_was_down_takes_its_flows_along(file: Path) -> None:
    world = KeptWorld(file, SSH, ANY_EGRESS)
    world.bind(WEB, "db")
    flows = [LOGIN, tcp(CLIENT6, MINE6, 22), tcp(CLIENT, "10.0.0.5", 22)]
    for syn in flows:
        world.connect(syn)
    world.down()
    told = World("compiled", SSH, ANY_EGRESS)
    told.bind(DB, "db", addresses=(MINE,))
    world.up(told.firewall.ruleset, judged=False)
    assert [flow.key.local for flow in world.firewall.live(world.now_ns)] == [LOGIN.destination]
    # They do not come back with it.
    world.bind(DB, "db")
    world.bind(WEB, "db")
    assert world.reasons(*(replace(syn, tcp_flags=ACK) for syn in flows)) == ["ESTABLISHED", "INVALID_STATE", "INVALID_STATE"]


def test_numbers_that_come_to_mean_something_else_do_not_lead_to_old_flows(file: Path) -> None:
    world = KeptWorld(file, DNS)
    for number in range(60):
        name, address = f"p/s{number}", f"10.0.2.{number}"
        world.set_rules(replace(DNS, id=f"r{number:02}"))
        world.bind(name, "db", addresses=(address,))
        asked = asked_of(name, address)
        world.open_answered(asked)
        if number % 3:
            world.reopen(judged=bool(number % 2))
        assert world.decide(asked).rule_id == f"r{number:02}"
        world.apply(removed_servers=(name,))
        assert world.flow_count() == 0
        other_one = asked_of(f"{name}-next", address)
        world.bind(f"{name}-next", "db", addresses=(address,))
        assert world.reasons(reply(other_one), asked) == ["NO_RULE", "UNKNOWN_SERVER"]
        world.apply(removed_servers=(f"{name}-next",))


def test_a_rule_that_is_gone_is_still_named_by_its_flows(file: Path) -> None:
    world = KeptWorld(file, SSH)
    world.connect(LOGIN)
    world.set_rules()
    world.reopen()
    assert world.decide(TYPED).reason.name == "REVOKED"
    assert world.decide(TYPED).rule_id == SSH.id
    # Nor does a rule that comes now get its number.
    world.set_rules(*(rule(f"n{number}", SSH.direction, ICMP, icmp_type=number) for number in range(100)))
    world.reopen()
    assert world.decide(TYPED).rule_id == SSH.id
