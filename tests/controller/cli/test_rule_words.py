"""Rules in words: what is read, what is refused and why, what is warned of. No controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from secgroups.cli.drafts import (
    ANYWHERE,
    Remote,
    RuleDraft,
    is_default,
    parse_cidr,
    parse_direction,
    parse_name,
    parse_octet,
    parse_ports,
    parse_protocol,
)
from secgroups.cli.errors import FieldError
from secgroups.cli.rule_messages import draft_of, spec_of
from secgroups.v1 import types_pb2 as types

Parse = Callable[[str], Any]

WEB_ID = "01a20b7e-5d25-7000-a63f-6938fbfeaaa3"


def icmp_type(text: str) -> int:
    return parse_octet(text, "icmp_type")


def name(text: str) -> str:
    return parse_name(text, "name")


def draft(**changes: Any) -> RuleDraft:
    return RuleDraft(**{"direction": "ingress", "protocol": "tcp", "remote": ANYWHERE, **changes})


@pytest.mark.parametrize(
    ("expected", "parse", "text"),
    [
        ("ingress", parse_direction, "ingress"),
        ("egress", parse_direction, "EGRESS"),
        ("tcp", parse_protocol, "TCP"),
        ("tcp", parse_protocol, "6"),
        ("udp", parse_protocol, "17"),
        ("icmp", parse_protocol, "1"),
        ("icmp", parse_protocol, "58"),
        ("47", parse_protocol, "47"),
        ("0", parse_protocol, "0"),
        ("255", parse_protocol, "255"),
        ("any", parse_protocol, "any"),
        ((22, 22), parse_ports, "22"),
        ((8080, 8090), parse_ports, "8080-8090"),
        ((1, 65535), parse_ports, "1-65535"),
        ((65535, 65535), parse_ports, "65535"),
        (0, icmp_type, "0"),
        (255, icmp_type, "255"),
        (Remote("cidr", "203.0.113.7/32"), parse_cidr, "203.0.113.7"),
        (Remote("cidr", "10.0.0.0/8"), parse_cidr, "10.1.2.3/8"),
        (Remote("cidr", "0.0.0.0/0"), parse_cidr, "0.0.0.0/0"),
        (Remote("cidr", "2001:db8::/32"), parse_cidr, "2001:DB8:0::1/32"),
        (Remote("cidr", "::1/128"), parse_cidr, "::1"),
        # one bit wider than the IPv4-mapped prefix it is not IPv4 any more
        (Remote("cidr", "::fffe:0:0/95"), parse_cidr, "::fffe:0:0/95"),
        ("web servers", name, "web servers"),
        ("x" * 128, name, "x" * 128),
    ],
)
def test_what_people_write_becomes_canonical(expected: object, parse: Parse, text: str) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("field", "parse", "text"),
    [
        ("direction", parse_direction, "in"),
        ("direction", parse_direction, ""),
        ("protocol", parse_protocol, "256"),
        ("protocol", parse_protocol, "-1"),
        ("protocol", parse_protocol, "06"),
        ("protocol", parse_protocol, "frob"),
        ("protocol", parse_protocol, ""),
        ("protocol", parse_protocol, "٦"),  # a digit, but not one of ours
        ("ports", parse_ports, "0"),
        ("ports", parse_ports, "65536"),
        ("ports", parse_ports, "0-22"),
        ("ports", parse_ports, "90-80"),
        ("ports", parse_ports, "80-"),
        ("ports", parse_ports, "-80"),
        ("ports", parse_ports, "022"),
        ("ports", parse_ports, "a-b"),
        ("ports", parse_ports, "80,443"),
        ("ports", parse_ports, ""),
        ("icmp_type", icmp_type, "256"),
        ("icmp_type", icmp_type, "-1"),
        ("icmp_type", icmp_type, "08"),
        ("remote", parse_cidr, "10.0.0.0/33"),
        ("remote", parse_cidr, "10.0.0.0/255.0.0.0"),
        ("remote", parse_cidr, "10.0.0.0/08"),
        ("remote", parse_cidr, "10.0.0.0/"),
        ("remote", parse_cidr, "010.0.0.1"),
        ("remote", parse_cidr, " 10.0.0.1"),
        ("remote", parse_cidr, "10.0.0"),
        ("remote", parse_cidr, "::ffff:10.0.0.1"),
        ("remote", parse_cidr, "::ffff:0:0/96"),
        ("remote", parse_cidr, "fe80::1%eth0"),
        ("remote", parse_cidr, "2001:db8::/129"),
        ("remote", parse_cidr, "example.org"),
        ("name", name, ""),
        ("name", name, "x" * 129),
        ("name", name, "a/b"),
        ("name", name, " web"),
        ("name", name, "web "),
        ("name", name, "a\nb"),
    ],
)
def test_what_is_no_value_is_refused_with_its_field(field: str, parse: Parse, text: str) -> None:
    with pytest.raises(FieldError) as refused:
        parse(text)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("ports", {"protocol": "icmp", "ports": (22, 22)}),
        ("ports", {"protocol": "any", "ports": (22, 22)}),
        ("ports", {"protocol": "47", "ports": (22, 22)}),
        ("icmp_type", {"protocol": "tcp", "icmp_type": 8}),
        ("icmp_code", {"protocol": "icmp", "icmp_code": 0}),
        ("description", {"description": "x" * 513}),
        ("description", {"description": "\udcff"}),
    ],
)
def test_what_does_not_fit_together_is_refused(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(FieldError) as refused:
        draft(**changes)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "sctp", "ports": (22, 22)},
        {"protocol": "udp", "ports": (22, 22)},
        {"protocol": "icmp", "icmp_type": 8},
        {"protocol": "icmp", "icmp_type": 8, "icmp_code": 0},
        {"description": "x" * 512},
    ],
)
def test_the_neighbours_of_what_is_refused_are_fine(changes: dict[str, Any]) -> None:
    assert draft(**changes).direction == "ingress"


def test_all_ports_are_the_same_rule_as_no_ports() -> None:
    assert draft(ports=(1, 65535)).identity == draft().identity
    assert draft(ports=(1, 65534)).identity != draft().identity


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("ingress tcp 22 from 203.0.113.0/24", draft(ports=(22, 22), remote=parse_cidr("203.0.113.0/24"))),
        ("ingress tcp 8080-8090 from group web", draft(ports=(8080, 8090), remote=Remote("group", "web"))),
        ("ingress tcp from anywhere", draft()),
        ("egress any to anywhere", draft(direction="egress", protocol="any")),
        ("ingress icmp type 8 code 0 from anywhere", draft(protocol="icmp", icmp_type=8, icmp_code=0)),
        ("ingress icmp from ::/0", draft(protocol="icmp", remote=parse_cidr("::/0"))),
        ("egress protocol 47 to 10.0.0.0/8", draft(direction="egress", protocol="47", remote=parse_cidr("10.0.0.0/8"))),
        ("ingress sctp 9 from anywhere", draft(protocol="sctp", ports=(9, 9))),
    ],
)
def test_a_rule_reads_as_a_line_and_survives_its_message(text: str, rule: RuleDraft) -> None:
    assert rule.text == text
    spec = spec_of(rule, lambda name: {"web": WEB_ID}[name])
    assert draft_of(spec, {WEB_ID: "web"}) == rule


def test_a_group_whose_name_is_not_known_shows_its_id() -> None:
    spec = types.RuleSpec(direction=types.DIRECTION_INGRESS, protocol=types.PROTOCOL_ANY, group_id=WEB_ID)
    assert draft_of(spec, {}).text == f"ingress any from group {WEB_ID}"


@pytest.mark.parametrize(
    ("ports", "rule"),
    [
        ([22], draft(ports=(22, 22))),
        ([], draft(ports=(23, 23))),  # first port past it
        ([], draft(ports=(21, 21))),
        ([22], draft(ports=(1, 22))),
        ([], draft(ports=(1, 21))),
        ([3389], draft(ports=(3000, 4000))),
        ([22, 3389], draft()),
        ([22, 3389], draft(protocol="any")),
        ([22, 3389], draft(remote=parse_cidr("0.0.0.0/0"))),
        ([22, 3389], draft(remote=parse_cidr("::/0"))),
        ([], draft(remote=parse_cidr("0.0.0.0/1"))),  # not everybody
        ([], draft(remote=parse_cidr("203.0.113.0/24"), ports=(22, 22))),
        ([], draft(remote=Remote("group", "web"), ports=(22, 22))),
        ([], draft(direction="egress", ports=(22, 22))),
        ([3389], draft(protocol="udp")),  # remote desktop speaks UDP too, SSH does not
        ([], draft(protocol="icmp")),
        ([], draft(protocol="sctp", ports=(22, 22))),
        ([], draft(protocol="47")),
    ],
)
def test_a_rule_that_opens_a_risky_port_to_everybody_is_warned_of(ports: list[int], rule: RuleDraft) -> None:
    warnings = list(rule.risks())
    assert len(warnings) == len(ports)
    for port, warning in zip(ports, warnings, strict=True):
        assert rule.text in warning
        assert f"port {port} " in warning


@pytest.mark.parametrize(("expected", "text"), [(True, "default"), (True, "DEFAULT"), (True, "Default"), (False, "defaults")])
def test_every_spelling_of_default_is_the_default_group(expected: bool, text: str) -> None:
    assert is_default(text) is expected
