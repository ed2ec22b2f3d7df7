"""What a rule is: valid or refused with its field, one canonical form for one meaning, and prefixes in one spelling."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rules_by_definition import WITH_PORTS, Packet, RawRule

from secgroups.controller.errors import InvalidError
from secgroups.controller.model import RuleSpec, check_description, check_name, is_default_name, parse_address, parse_cidr
from secgroups.controller.store.records import spec_of, spec_record, to_json

FIELDS = [each.name for each in fields(RawRule)]
# The same few values in several spellings, so that two rules often mean the same.
REMOTES = [
    *("anywhere", "0.0.0.0/0", "10.9.8.7/0", "::/0", "2001:db8::/0", "group a", "group b"),
    *("10.0.0.0/8", "10.1.2.3/8", "10.0.0.0/9", "10.0.0.1", "10.0.0.1/32", "10.0.0.0/31", "10.0.0.1/31"),
    *("2001:db8::/32", "2001:DB8:0:0::1/32", "2001:0db8::/33", "2001:db8::1", "2001:db8:0::1/128"),
]
PORTS = [None, (1, 65_535), (1, 65_534), (2, 65_535), (22, 22), (22, 23), (80, 80)]
BOUNDARY_PORTS = (1, 2, 21, 22, 23, 24, 79, 80, 81, 65_534, 65_535)
directions = st.sampled_from(["INGRESS", "EGRESS"])
valid_rules = st.one_of(
    st.builds(RawRule, direction=directions, protocol=st.sampled_from([None, 0, 47, 255]), remote=st.sampled_from(REMOTES)),
    st.builds(
        RawRule,
        direction=directions,
        protocol=st.sampled_from(WITH_PORTS),
        ports=st.sampled_from(PORTS),
        remote=st.sampled_from(REMOTES),
    ),
    st.builds(
        lambda icmp, **rest: RawRule(icmp_type=icmp[0], icmp_code=icmp[1], **rest),
        st.sampled_from([(None, None), (0, None), (0, 0), (8, None), (8, 0), (8, 255), (255, 0)]),
        direction=directions,
        protocol=st.sampled_from([1, 58]),
        remote=st.sampled_from(REMOTES),
    ),
)

REMOTE_POINTS = [
    *((ip_address(text), frozenset()) for text in ("9.255.255.255", "10.0.0.0", "10.0.0.1", "10.0.0.2", "10.127.255.255")),
    *((ip_address(text), frozenset()) for text in ("10.128.0.0", "10.255.255.255", "11.0.0.0", "2001:db8::", "2001:db8::1")),
    *((ip_address(text), frozenset()) for text in ("2001:db8:7fff::", "2001:db8:8000::", "2001:db9::", "2001:db7:ffff::")),
    *((ip_address(text), frozenset({name})) for text, name in (("192.0.2.1", "a"), ("2001:db9::1", "b"))),
]
PROTOCOL_POINTS = [
    *({"protocol": protocol, "port": port} for protocol, port in product(WITH_PORTS, BOUNDARY_PORTS)),
    *({"protocol": 1, "icmp_type": kind, "icmp_code": code} for kind, code in product((0, 1, 8, 255), (0, 1, 255))),
    *({"protocol": protocol} for protocol in (0, 47, 253, 255)),
]
# Every boundary of the values above and what lies beside it.
SAMPLE = [
    Packet(direction=direction, remote=remote, remote_groups=groups, **point)
    for direction, (remote, groups), point in product(("INGRESS", "EGRESS"), REMOTE_POINTS, PROTOCOL_POINTS)
]


def covered(rule: RawRule) -> list[bool]:
    return [rule.covers(packet) for packet in SAMPLE]


@settings(deadline=None, max_examples=200)
@given(first=valid_rules, changes=valid_rules, taken=st.sets(st.sampled_from(FIELDS), max_size=2))
@example(RawRule(protocol=6, ports=(1, 65_535)), RawRule(protocol=6), {"ports"})
@example(RawRule(protocol=58, icmp_type=8), RawRule(protocol=1, icmp_type=8), {"protocol"})
@example(RawRule(protocol=1, icmp_type=8, icmp_code=0), RawRule(icmp_code=255), {"icmp_code"})
@example(RawRule(protocol=1, icmp_type=8), RawRule(icmp_code=0), {"icmp_code"})
@example(RawRule(protocol=1, icmp_type=8), RawRule(icmp_type=0), {"icmp_type"})
@example(RawRule(protocol=6, ports=(22, 22)), RawRule(ports=(22, 23)), {"ports"})
@example(RawRule(remote="group a"), RawRule(remote="group b"), {"remote"})
@example(RawRule(remote="anywhere"), RawRule(remote="::/0"), {"remote"})
def test_two_rules_are_duplicates_exactly_if_they_cover_the_same(first: RawRule, changes: RawRule, taken: set[str]) -> None:
    second = replace(first, **{name: getattr(changes, name) for name in taken})
    if second.wrong_fields:
        second = changes
    assert (first.spec().identity == second.spec().identity) == (covered(first) == covered(second))
    assert (first.spec() == second.spec()) == (covered(first) == covered(second))


@settings(deadline=None)
@given(valid_rules, st.text(max_size=20))
def test_a_canonical_form_is_its_own_and_survives_being_kept(rule: RawRule, description: str) -> None:
    spec = rule.spec(description=description)
    assert RuleSpec(**{each.name: getattr(spec, each.name) for each in fields(RuleSpec)}) == spec
    assert spec_of(json.loads(to_json(spec_record(spec)))) == spec
    assert replace(spec, description="other").identity == spec.identity


def refused_fields(make: Callable[..., object], *values: object) -> set[str]:
    """Return the fields that an InvalidError names, none if the values are taken."""
    try:
        make(*values)
    except InvalidError as error:
        return {violation.field for violation in error.violations}
    return set()


around_ports = st.sampled_from([-1, 0, 1, 2, 22, 65_535, 65_536, 1 << 40])
around_bytes = st.none() | st.sampled_from([-1, 0, 1, 8, 58, 255, 256])


@settings(deadline=None, max_examples=500)
@given(
    st.builds(
        RawRule,
        direction=directions,
        protocol=st.sampled_from([None, -1, 0, 1, 6, 17, 47, 58, 132, 133, 255, 256]),
        ports=st.none() | st.tuples(around_ports, around_ports),
        icmp_type=around_bytes,
        icmp_code=around_bytes,
    )
)
def test_a_rule_is_refused_exactly_if_a_field_is_wrong_and_that_field_is_named(rule: RawRule) -> None:
    fields_named = refused_fields(rule.spec)
    assert fields_named <= rule.wrong_fields
    assert bool(fields_named) == bool(rule.wrong_fields)


# Prefixes.


@settings(deadline=None)
@given(st.ip_addresses(), st.data())
def test_a_prefix_is_kept_without_host_bits_and_read_back_as_itself(
    address: IPv4Address | IPv6Address, data: st.DataObject
) -> None:
    length = data.draw(st.none() | st.integers(0, address.max_prefixlen))
    text = str(address) if length is None else f"{address}/{length}"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        with pytest.raises(InvalidError, match="IPv4-mapped"):
            parse_cidr(text, "cidr")
        return
    found = parse_cidr(text, "cidr")
    bits = address.max_prefixlen if length is None else length
    ignored = address.max_prefixlen - bits
    assert (found.version, found.prefixlen) == (address.version, bits)
    assert int(found.network_address) == int(address) >> ignored << ignored
    assert parse_cidr(str(found), "cidr") == found
    assert parse_cidr(address.exploded + (f"/{length}" if length is not None else ""), "cidr") == found


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        (None, "10.0.0.0/255.0.0.0"),  # a netmask
        (None, "10.0.0.0/0.255.255.255"),  # a host mask
        (None, "10.0.0.0/08"),
        (None, "010.0.0.0/8"),
        (None, "10.0.0.00/8"),
        (None, "10.0.0.0/+8"),
        (None, "10.0.0.0/ 8"),
        (None, " 10.0.0.0/8"),
        (None, "10.0.0.0/8 "),
        (None, "10.0.0.0/8\n"),
        (None, "10.0.0.0/"),
        (None, "/8"),
        (None, "10.0.0.0/8/8"),
        ("0.0.0.0/0", "10.0.0.0/0"),
        ("10.0.0.0/32", "10.0.0.0/32"),
        (None, "10.0.0.0/33"),
        (None, "10.0.0.0/999"),
        (None, "10.0.0.0/1000"),
        (None, "10.0.0.0/-1"),
        (None, "10.0.0/8"),
        (None, "10/8"),
        (None, "167772160/8"),
        (None, "10.0.0.256"),
        (None, "\u0661\u0660.0.0.0/8"),  # digits, but not those of addresses
        (None, "10.0.0.0/\u0668"),
        ("2001:db8::/32", "2001:DB8::1/32"),
        ("::/128", "::"),
        (None, "2001:db8::/129"),
        (None, "2001:db8::/032"),
        (None, "2001:db8:/32"),
        (None, "2001:db8::1::/32"),
        (None, "[2001:db8::]/32"),
        (None, "fe80::1%eth0"),
        (None, "fe80::%1/64"),
        (None, "fe80::1%"),
        (None, "::ffff:10.0.0.1"),
        (None, "::ffff:a00:1/128"),
        (None, "::ffff:0:0/96"),
        (None, "::ffff:10.0.0.1/64"),  # it would cover far more than the mapped addresses
        ("::fffe:0:0/96", "::fffe:10.0.0.1/96"),  # the prefix before
        ("::1:0:0:0/96", "::1:0:0:1/96"),  # and the one after
        ("::/0", "::/0"),
        (None, ""),
        (None, "anywhere"),
        (None, "0x0a000000"),
        (None, "10.0.0.0\x00/8"),
        (None, "1" * 5_000),
    ],
    ids=lambda text: str(text)[:40],
)
def test_one_spelling_of_prefixes_is_taken(expected: str | None, text: str) -> None:
    if expected is None:
        with pytest.raises(InvalidError, match=r"remote\.cidr: ") as refused:
            parse_cidr(text, "remote.cidr")
        assert len(str(refused.value)) < 250
    else:
        assert str(parse_cidr(text, "remote.cidr")) == expected


@settings(deadline=None, max_examples=300)
@given(st.text("0123456789abcfF:./%-+ \n\u0661x", max_size=24) | st.text(max_size=12))
@example("::FFFF:1.2.3.4/200")
@example("1.2.3.4%5/6")
def test_any_text_is_a_prefix_that_reads_back_as_itself_or_is_refused(text: str) -> None:
    for parse in (parse_cidr, parse_address):
        if refused_fields(parse, text, "f") != {"f"}:
            found = parse(text, "f")
            assert parse(str(found), "f") == found


# Names.


@given(st.lists(st.booleans(), min_size=7, max_size=7))
def test_every_spelling_of_default_is_the_default_group_s(upper: list[bool]) -> None:
    name = "".join(letter.upper() if big else letter for letter, big in zip("default", upper, strict=True))
    assert is_default_name(name)
    assert not is_default_name(name[:-1])
    assert not is_default_name(f"{name} ")


@settings(deadline=None)
@given(st.text(min_size=0, max_size=3) | st.integers(126, 131).map("é".__mul__))
def test_a_name_is_printable_without_slash_without_blank_at_either_end(text: str) -> None:
    is_name = 1 <= len(text) <= 128 and text.isprintable() and "/" not in text and text[0] != " " != text[-1]
    assert refused_fields(check_name, text, "name") == (set() if is_name else {"name"})


@pytest.mark.parametrize(("expected", "text"), [(set(), "é" * 512), ({"description"}, "é" * 513), ({"description"}, "a\ud800")])
def test_a_description_is_bounded_and_can_be_stored(expected: set[str], text: str) -> None:
    assert refused_fields(check_description, text) == expected
