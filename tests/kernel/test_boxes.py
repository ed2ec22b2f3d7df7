"""Rules as boxes: apart from each other, and each point has the lowest of the rules that cover it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import allow

from secgroups.agent.effective import EffectiveRule, Opening
from secgroups.agent.flow import ICMP, ICMPV6, Direction
from secgroups.agent.kernel.boxes import NetworkBox, PortBox, network_boxes, port_boxes
from secgroups.agent.kernel.statements import box_element
from secgroups.agent.ruleset import Rule

NETWORKS = [
    *("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.1.2.2/31"),
    *("192.0.2.0/25", "255.255.255.255/32", "0.0.0.0/1"),
]
ADDRESSES = [
    *("10.0.0.0", "10.1.2.1", "10.1.2.2", "10.1.2.3", "10.1.3.0"),
    *("192.0.2.127", "192.0.2.128", "255.255.255.255", "127.0.0.1"),
]
PROTOCOLS = [0, 1, 6, 17, 58, 132, 255]
PORTS = [0, 1, 79, 80, 81, 443, 2048, 2049, 65_535]


def rules(networks: list[str]) -> st.SearchStrategy[list[Rule]]:
    ports = st.tuples(st.sampled_from(PORTS[1:]), st.sampled_from(PORTS[1:])).map(lambda ends: (min(ends), max(ends)))
    about = st.one_of(
        st.fixed_dictionaries({"protocol": st.sampled_from([None, 6, 17, 1, 47])}),
        st.fixed_dictionaries({"protocol": st.sampled_from([6, 17, 132]), "ports": ports}),
        st.fixed_dictionaries({"protocol": st.just(1), "icmp": st.tuples(st.sampled_from([0, 8]), st.sampled_from([None, 0, 1]))}),
    )
    one = st.tuples(st.integers(0, 99), about, st.sampled_from(networks))
    return st.lists(one, max_size=12, unique_by=lambda drawn: drawn[0]).map(
        lambda drawn: [allow(f"{number:02}", network=network, **fields) for number, fields, network in drawn]
    )


def expected(of: list[Rule], protocol: int, port: int, remote: str) -> str:
    is_icmp = protocol in (ICMP, ICMPV6)
    opening = Opening(
        direction=Direction.INGRESS,
        remote=ip_address(remote),
        protocol=protocol,
        port=0 if is_icmp else port,
        icmp_type=port >> 8 if is_icmp else 0,
        icmp_code=port & 0xFF if is_icmp else 0,
    )
    allowing = [rule.id for rule in of if EffectiveRule(rule=rule, group_id="g").allows(opening)]
    return min(allowing, default="")


def covers(box: PortBox, protocol: int, port: int) -> bool:
    return box.protocols[0] <= protocol <= box.protocols[1] and box.ports[0] <= port <= box.ports[1]


@settings(deadline=None)
@given(rules(NETWORKS))
def test_each_point_is_in_the_box_of_its_lowest_rule_and_in_no_other(of: list[Rule]) -> None:
    boxes = network_boxes([(rule.remote, rule) for rule in of], 4)
    for remote in ADDRESSES:
        here = [made.box for made in boxes if made.first <= ip_address(remote) <= made.last]
        for protocol in set(PROTOCOLS) - {ICMPV6}:
            for port in PORTS if protocol in (1, 6, 17, 132) else [0]:
                found = [box.rule_id for box in here if covers(box, protocol, port)]
                wanted = expected(of, protocol, port, remote)
                assert found == ([wanted] if wanted else [])


@pytest.mark.parametrize(
    ("expected_boxes", "version", "of"),
    [
        ([], 4, []),
        ([PortBox((0, 255), (0, 65_535), "a")], 4, [allow("a")]),
        ([PortBox((6, 6), (80, 80), "a")], 6, [allow("a", protocol=6, ports=80)]),
        ([PortBox((58, 58), (2048, 2303), "a")], 6, [allow("a", protocol=1, icmp=(8, None))]),
        ([PortBox((1, 1), (2049, 2049), "a")], 4, [allow("a", protocol=1, icmp=(8, 1))]),
        (
            [PortBox((6, 6), (1, 79), "b"), PortBox((6, 6), (80, 90), "a"), PortBox((6, 6), (91, 99), "b")],
            4,
            [allow("b", protocol=6, ports=(1, 99)), allow("a", protocol=6, ports=(80, 90))],
        ),
        (
            [
                PortBox((0, 5), (0, 65_535), "b"),
                PortBox((6, 6), (0, 79), "b"),
                PortBox((6, 6), (80, 80), "a"),
                PortBox((6, 6), (81, 65_535), "b"),
                PortBox((7, 255), (0, 65_535), "b"),
            ],
            4,
            [allow("b"), allow("a", protocol=6, ports=80)],
        ),
    ],
)
def test_overlapping_rules_are_cut_where_the_lowest_ends(expected_boxes: list[PortBox], version: int, of: list[Rule]) -> None:
    assert list(port_boxes(of, version)) == expected_boxes


def test_a_network_within_another_takes_its_rules_along() -> None:
    outer, inner = allow("a", protocol=6, ports=80), allow("b", protocol=6, ports=443)
    boxes = network_boxes([(ip_network("10.0.0.0/30"), outer), (ip_network("10.0.0.1/32"), inner)], 4)
    http, https = PortBox((6, 6), (80, 80), "a"), PortBox((6, 6), (443, 443), "b")
    at = ip_address
    assert boxes == (
        NetworkBox(at("10.0.0.0"), at("10.0.0.0"), http),
        NetworkBox(at("10.0.0.1"), at("10.0.0.1"), http),
        NetworkBox(at("10.0.0.1"), at("10.0.0.1"), https),
        NetworkBox(at("10.0.0.2"), at("10.0.0.3"), http),
    )


def test_an_element_names_first_what_few_boxes_share() -> None:
    box = PortBox((6, 6), (80, 81), "a")
    network = NetworkBox(ip_address("10.0.0.0"), ip_address("10.0.0.255"), box)
    assert box_element(box)["elem"]["val"] == {"concat": [{"range": [80, 81]}, 6]}
    assert box_element(network)["elem"]["val"]["concat"] == [{"range": ["10.0.0.0", "10.0.0.255"]}, {"range": [80, 81]}, 6]
