"""Packets that begin flows, in batches, against rules for many networks that come and go."""

from __future__ import annotations

import pytest
from agent_world import ACK, CLIENT, CLIENT6, INGRESS, World, many_of, names, rule, tcp, udp

from secgroups.agent.flow import TCP, UDP

MINE, MINE6 = "10.0.0.9", "2001:db8::9"
NETWORK, NEAR, FAR = "192.168.0.0/16", "192.168.7.7", "192.169.0.1"
LOW, HIGH = rule("low", INGRESS, TCP, 22, NETWORK), rule("high", INGRESS, TCP, (8_000, 8_010), NETWORK)
DATAGRAMS, ALL = rule("udp", INGRESS, UDP, 53, NETWORK), rule("all", INGRESS, remote=NETWORK)
# Those of a wide network, which other networks lie within.
WIDE = rule("wide", INGRESS, TCP, 443, "192.0.0.0/8")

# More than one batch has.
NETWORKS = [f"10.{high}.{low}.0/24" for high in range(100, 120) for low in (0, 7, 255)]


@pytest.mark.parametrize("rules_for_all", [(), (rule("everyone", INGRESS, TCP, 80),)], ids=["none", "some"])
def test_after_every_change_of_its_rules_a_network_has_the_ports_that_they_name(engine, rules_for_all):
    world = World(engine, *rules_for_all)
    ports = (21, 22, 23, 443, 7_999, 8_000, 8_010, 8_011)
    steps = [
        ((LOW,), {22}, set()),
        ((LOW, HIGH), {22, 8_000, 8_010}, set()),
        ((HIGH,), {8_000, 8_010}, set()),
        ((HIGH, DATAGRAMS), {8_000, 8_010}, {53}),
        ((DATAGRAMS,), set(), {53}),
        ((DATAGRAMS, ALL), set(ports), {22, 53}),
        ((ALL, WIDE), set(ports), {22, 53}),
        ((WIDE, LOW), {22, 443}, set()),
        ((WIDE,), {443}, set()),
        ((), set(), set()),
    ]
    for rules, allowed, datagrams in steps:
        world.set_rules(*rules_for_all, *rules)
        # Each from a port of its own, for flows that were allowed before are still there.
        world.advance(1_000_000)
        answers = many_of(
            world,
            *(tcp(NEAR, MINE, port) for port in ports),
            *(udp(NEAR, MINE, port) for port in (22, 53)),
            *(tcp(FAR, MINE, port) for port in (22, 443)),
        )
        wide = WIDE in rules
        assert names(answers) == [
            ("NEW", 13) if is_allowed else ("NO_RULE", 11)
            for is_allowed in [*(port in allowed for port in ports), *(port in datagrams for port in (22, 53)), False, wide]
        ]


def test_networks_that_come_and_go_by_the_dozen_let_in_whom_they_cover(engine):
    world = World(engine)
    rules = {network: rule(f"r-{number:03}", INGRESS, TCP, 443, network) for number, network in enumerate(NETWORKS)}
    held: set[str] = set()
    for step, changed in enumerate([NETWORKS[::2], NETWORKS[1::2], NETWORKS[::3], NETWORKS[::5], NETWORKS]):
        held ^= set(changed)
        world.set_rules(*(rules[network] for network in sorted(held)))
        world.advance(1_000_000)
        asked = [tcp(network.replace(".0/24", f".{last}"), MINE, 443) for network in NETWORKS for last in (1, 255)]
        answers = many_of(world, *asked)
        expected = [("NEW", rules[network].id) if network in held else ("NO_RULE", "") for network in NETWORKS for _ in (1, 255)]
        assert [(answer.verdict.reason.name, answer.verdict.rule_id) for answer in answers] == expected, f"step {step}"
    if engine == "compiled":
        assert world.firewall.flows.check(world.now_ns) == []


def test_what_begins_a_flow_and_what_goes_on_with_it_may_stand_side_by_side_in_a_batch(engine):
    world = World(engine, rule("https", INGRESS, TCP, 443), rule("quic", INGRESS, UDP, 443, "203.0.113.0/24"))
    asked = [
        tcp(CLIENT, MINE, 443),
        tcp(CLIENT, MINE, 443),  # once more
        tcp(CLIENT, MINE, 443, ACK, source_port=40_001),  # of no connection
        tcp(CLIENT, MINE, 444),
        udp(CLIENT, MINE, 443),
        udp(CLIENT, MINE, 443),
        udp("203.0.114.1", MINE, 443),
        tcp(CLIENT6, MINE6, 443),
        tcp(CLIENT6, MINE6, 443),
        udp(CLIENT6, MINE6, 443),
    ]
    assert names(many_of(world, *asked)) == [
        ("NEW", 13),
        ("ESTABLISHED", 9),
        ("INVALID_STATE", 10),
        ("NO_RULE", 11),
        ("NEW", 13),
        ("ESTABLISHED", 9),
        ("NO_RULE", 11),
        ("NEW", 13),
        ("ESTABLISHED", 9),
        ("NO_RULE", 11),
    ]
    verdicts = world.firewall.stats(world.now_ns).verdicts
    assert {reason.name: count for reason, count in verdicts.items() if count} == {
        "NEW": 3,
        "ESTABLISHED": 3,
        "NO_RULE": 3,
        "INVALID_STATE": 1,
    }
