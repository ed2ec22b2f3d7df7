"""Batches of packed records get what their packets would get one by one, and nothing else gets a verdict."""

from __future__ import annotations

from array import array
from dataclasses import replace
from ipaddress import ip_address
from itertools import accumulate

import numpy as np
import pytest
from agent_world import (
    ACK,
    ANY_EGRESS,
    ANY_INGRESS,
    CLIENT,
    CLIENT6,
    DB,
    DNS,
    FIRST,
    INGRESS,
    LATER,
    OTHER,
    PING,
    SSH,
    SYN_ACK,
    WEB,
    World,
    error_about,
    icmp,
    many,
    many_of,
    names,
    other,
    packet,
    quote,
    reply,
    tcp,
    udp,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secgroups.agent.flow import Reason
from secgroups.agent.records import (
    QUOTE_BYTES,
    RECORD_BYTES,
    pack,
    pack_many,
    record_dtype,
    unpack,
    verdict_dtype,
)

DB4 = "10.0.0.9"
SYN_IN = tcp(CLIENT, DB4, 22)
PING_IN = icmp(CLIENT, DB4, 8)
WHOLE = pack(SYN_IN, 1)[0]

# What is wrong, the offset of the bytes that make it so, and those bytes.
MALFORMED = [
    ("ip_version 0", 41, b"\x00"),
    ("ip_version 5", 41, b"\x05"),
    ("ip_version 6 with mapped addresses", 41, b"\x06"),
    ("source not mapped", 0, b"\x01"),
    ("destination not mapped", 27, b"\xfe"),
    ("direction 0", 42, b"\x00"),
    ("direction 3", 42, b"\x03"),
    ("fragment 3", 48, b"\x03"),
    ("reserved byte 49", 49, b"\x01"),
    ("reserved byte 51", 51, b"\x80"),
]


def changed(entry, at, new):
    return entry[:at] + new + entry[at + len(new) :]


@pytest.mark.parametrize(("at", "new"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_a_malformed_record_is_an_invalid_packet_and_leaves_nothing_behind(engine, at, new):
    world = World(engine, ANY_INGRESS)
    handle = world.firewall.server_handle(DB)
    for good in (SYN_IN, replace(SYN_IN, fragment=FIRST, fragment_id=5)):
        assert names(many(world, changed(pack(good, handle)[0], at, new))) == [("INVALID_PACKET", 3)]
    later = replace(SYN_IN, fragment=LATER, fragment_id=5, source_port=0, destination_port=0)
    assert names(many_of(world, later)) == [("UNKNOWN_FRAGMENT", 7)]
    assert world.flow_count() == 0
    assert names(many_of(world, SYN_IN)) == [("NEW", 13)]


@pytest.mark.parametrize("version", [0, 5, 255])
@pytest.mark.parametrize("make", [tcp, udp])
def test_a_record_of_no_ip_version_is_invalid_in_a_flow_of_any_address(engine, make, version):
    world = World(engine, ANY_INGRESS)
    # Those beyond the first of a family are found in another way.
    addresses = ("10.0.0.9", "10.0.0.10", "2001:db8::9", "2001:db8::a")
    world.bind(DB, "db", addresses=addresses)
    for address in addresses:
        opening = make(CLIENT if "." in address else CLIENT6, address, 443, at=DB, direction=INGRESS)
        world.open_answered(opening)
        again = replace(opening, tcp_flags=ACK) if make is tcp else opening
        records, _ = pack_many([again], world.firewall.server_handle)
        assert names(many(world, changed(records, 41, bytes([version])))) == [("INVALID_PACKET", 3)], address
        assert names(many(world, records)) == [("ESTABLISHED", 9)], address


@pytest.mark.parametrize(("at", "new"), [(41, b"\x00"), (42, b"\x03"), (50, b"\x01"), (0, b"")])
def test_rows_1_and_2_come_before_the_record_is_looked_at(engine, at, new):
    world = World(engine, ANY_INGRESS)
    world.bind(WEB, "not-held")
    unknown, unready = (changed(pack(SYN_IN, handle)[0], at, new) for handle in (99, world.firewall.server_handle(WEB)))
    assert names(many(world, unknown + unready)) == [("UNKNOWN_SERVER", 1), ("NO_RULESET", 2)]


# Packets with values that have no room in a record. An impossible one must stay so; the others must not become so.
ODD = [
    ("families differ", replace(SYN_IN, source=ip_address(CLIENT6))),
    ("protocol 256", replace(SYN_IN, protocol=256)),
    ("protocol -1", replace(SYN_IN, protocol=-1)),
    ("source port beyond", replace(SYN_IN, source_port=65_536 + 80)),
    ("destination port beyond", replace(SYN_IN, destination_port=65_536 + 22)),
    ("port below", replace(SYN_IN, destination_port=-1)),
    ("port beyond in a first fragment", replace(SYN_IN, destination_port=65_536 + 22, fragment=FIRST)),
    ("port beyond in a later fragment", replace(SYN_IN, destination_port=65_536 + 22, fragment=LATER)),
    ("port beyond without ports", replace(other(CLIENT, DB4, 47), destination_port=70_000)),
    ("TCP flags beyond the byte", replace(SYN_IN, tcp_flags=0x102)),
    ("ICMP type beyond", replace(PING_IN, icmp_type=256 + 8)),
    ("ICMP code beyond", replace(PING_IN, icmp_code=256)),
    ("ICMP code below with a quote", replace(PING_IN, icmp_code=-1, quoted=quote(SYN_IN))),
    ("ICMPv6 type beyond", replace(icmp(CLIENT6, "2001:db8::9", 128), icmp_type=256 + 128)),
    ("ICMP type beyond in TCP", replace(SYN_IN, icmp_type=300)),
    ("length beyond", replace(SYN_IN, length=2**40)),
    ("length below", replace(SYN_IN, length=-1)),
]


@pytest.mark.parametrize("asked", [row[1] for row in ODD], ids=[row[0] for row in ODD])
def test_values_that_have_no_room_get_the_verdict_that_they_get_unpacked(asked):
    # The reference engine takes the packet as it is; any other may well pack it.
    plain, packed = (World("reference", SSH, ANY_INGRESS) for _ in range(2))
    later = replace(asked, fragment=LATER)
    expected = [plain.decide(each) for each in (asked, later)]
    assert [answer.verdict for answer in many_of(packed, asked, later)] == expected
    assert packed.firewall.stats(0).fragments == plain.firewall.stats(0).fragments


OPENED = udp(DB4, CLIENT, 53)
ERROR = error_about(OPENED)
QUOTE = pack(ERROR, 1)[1]
QUOTES = [
    ("RELATED", 1, QUOTE),
    ("RELATED", 2, bytes(QUOTE_BYTES) + QUOTE),
    ("INVALID_PACKET", 0, QUOTE),
    ("INVALID_PACKET", 1, b""),
    ("INVALID_PACKET", 2, QUOTE),
    ("INVALID_PACKET", 0xFFFF_FFFF, QUOTE),
    ("NO_RULE", 1, changed(QUOTE, 37, b"\x00")),
    ("NO_RULE", 1, changed(QUOTE, 37, b"\x06")),
    ("NO_RULE", 1, changed(QUOTE, 39, b"\x01")),
    ("NO_RULE", 1, changed(QUOTE, 47, b"\x01")),
    ("NO_RULE", 1, changed(QUOTE, 0, b"\x01")),
    ("NO_RULE", 1, changed(QUOTE, 34, b"\x36")),
]


@pytest.mark.parametrize(("expected", "number", "quotes"), QUOTES)
def test_a_quote_is_found_by_its_number_and_a_malformed_one_is_about_no_flow(engine, expected, number, quotes):
    world = World(engine, ANY_EGRESS)
    handle = world.firewall.server_handle(DB)
    assert names(many_of(world, OPENED)) == [("NEW", 13)]
    assert names(many(world, pack(ERROR, handle, number)[0], quotes))[0][0] == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"source": ip_address("2001:db8::9")},
        {"destination_port": 65_536 + 53},
        {"source_port": 40_000 - 65_536},
        {"protocol": 256 + 17},
    ],
    ids=str,
)
def test_a_quote_with_a_value_that_has_no_room_is_about_no_flow(engine, changes):
    world = World(engine, ANY_EGRESS)
    wrong = replace(ERROR, quoted=replace(ERROR.quoted, **changes))
    assert names(many_of(world, OPENED, wrong, ERROR)) == [("NEW", 13), ("NO_RULE", 11), ("RELATED", 8)]


def test_later_records_see_the_flows_that_earlier_ones_opened(engine):
    world = World(engine, SSH)
    answers = many_of(
        world, tcp(CLIENT, DB4, 22), reply(SYN_IN, tcp_flags=SYN_ACK), tcp(CLIENT, DB4, 23), tcp(CLIENT, DB4, 22, ACK)
    )
    assert names(answers) == [("NEW", 13), ("ESTABLISHED", 9), ("NO_RULE", 11), ("ESTABLISHED", 9)]
    assert [answer.verdict.rule_id for answer in answers] == ["b-ssh", "b-ssh", "", "b-ssh"]
    assert [answer.verdict.opened for answer in answers] == [True, False, False, False]


conversations_st = st.lists(
    st.tuples(
        st.sampled_from(
            [
                tcp(CLIENT, DB4, 22),
                tcp(CLIENT, DB4, 22, fragment=FIRST, fragment_id=1),
                packet(CLIENT, DB4, 6, fragment=LATER, fragment_id=1),
                udp(CLIENT, DB4, 53),
                udp(DB4, CLIENT, 53),
                icmp(CLIENT, DB4, 8),
                icmp(CLIENT6, "2001:db8::9", 128),
                tcp(CLIENT, "10.0.0.5", 80),
                tcp(OTHER, DB4, 22, at="p/unknown"),
                udp(OTHER, DB4, 0),
            ]
        ),
        st.sampled_from(["ask", "answer", "go on", "complain"]),
    ),
    max_size=40,
)


def batched(entries, size):
    return [entries[at : at + size] for at in range(0, len(entries), size)]


def said(opening, what):
    if what == "answer":
        return reply(opening, tcp_flags=SYN_ACK if opening.protocol == 6 else 0)
    if what == "go on":
        return replace(opening, tcp_flags=ACK if opening.protocol == 6 else 0)
    return error_about(opening, source=str(opening.destination)) if what == "complain" else opening


# The fixture is a name, the same for every example.
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversations=conversations_st, batch=st.integers(1, 12))
def test_decide_many_is_decide_over_and_over(engine, conversations, batch):
    one_by_one, packed = (World(engine, SSH, DNS, PING, ANY_EGRESS, flows_max=4, fragments_max=4) for _ in range(2))
    asked = [said(*each) for each in conversations]
    expected = []
    for each in asked:
        step = one_by_one.explain(each).step
        expected.append((one_by_one.decide(each), step))
    answers = []
    for at in range(0, len(asked), batch):
        answers += many_of(packed, *asked[at : at + batch])
    assert [(answer.verdict, answer.step) for answer in answers] == expected
    assert packed.firewall.stats(packed.now_ns) == one_by_one.firewall.stats(one_by_one.now_ns)


SEEDS = [
    SYN_IN,
    PING_IN,
    error_about(OPENED),
    udp(CLIENT, DB4, 53, fragment=FIRST, fragment_id=1),
    udp(CLIENT, DB4, 53, fragment=LATER, fragment_id=1),
    icmp(CLIENT6, "2001:db8::9", 128),
]
broken_st = st.tuples(
    st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, RECORD_BYTES - 1), st.binary(min_size=1, max_size=4)), max_size=2)
)


def broken(handle, asked, changes):
    record = pack(asked, handle)[0]
    for at, new in changes:
        record = changed(record, at, new)[:RECORD_BYTES]
    return record


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(broken_st, max_size=12),
    noise=st.lists(st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES), max_size=2),
    quotes=st.sampled_from([b"", QUOTE, changed(QUOTE, 37, b"\x07")]),
)
def test_whatever_the_bytes_are_they_get_the_verdict_of_the_packet_that_they_are(engine, asked, noise, quotes):
    reference, packed = (World(each, SSH, DNS, PING, ANY_EGRESS) for each in ("reference", engine))
    many_of(packed, OPENED)
    reference.decide(OPENED)
    handle = packed.firewall.server_handle(DB)
    records = [broken(handle, *each) for each in asked] + noise
    expected = []
    for each in records:
        packet_of = unpack(each, quotes, {handle: DB}.get)
        step = reference.explain(packet_of).step
        expected.append((reference.decide(packet_of), step))
    answers = many(packed, b"".join(records), quotes)
    assert [(answer.verdict, answer.step) for answer in answers] == expected


@pytest.mark.parametrize("form", ["bytes", "bytearray", "memoryview", "array of bytes", "structured array", "rows"])
def test_any_contiguous_buffer_does(engine, form):
    world = World(engine, SSH)
    handle = world.firewall.server_handle(DB)
    records = pack(SYN_IN, handle)[0] + pack(tcp(CLIENT, DB4, 23), handle)[0]
    as_rows = np.frombuffer(records, np.uint8).reshape(-1, RECORD_BYTES)
    given_as, verdicts = {
        "bytes": (records, bytearray(16)),
        "bytearray": (bytearray(records), bytearray(16)),
        "memoryview": (memoryview(b"x" + records)[1:], memoryview(bytearray(20))[4:]),
        "array of bytes": (as_rows.ravel(), np.zeros(16, np.uint8)),
        "structured array": (np.frombuffer(records, record_dtype()), np.zeros(2, verdict_dtype())),
        "rows": (as_rows, np.zeros((2, 8), np.uint8)),
    }[form]
    world.firewall.decide_many(given_as, world.now_ns, verdicts)
    assert np.frombuffer(verdicts, verdict_dtype())["reason"].tolist() == [Reason.NEW, Reason.NO_RULE]


@pytest.mark.parametrize(
    ("message", "records", "verdicts", "quotes"),
    [
        ("records have 65 bytes, not a multiple of 64", bytes(65), bytearray(8), b""),
        ("records have 63 bytes, not a multiple of 64", bytes(63), bytearray(0), b""),
        ("quotes have 47 bytes, not a multiple of 48", WHOLE, bytearray(8), bytes(47)),
        ("verdicts have 7 bytes, 1 records need 8", WHOLE, bytearray(7), b""),
        ("verdicts have 16 bytes, 1 records need 8", WHOLE, bytearray(16), b""),
        ("verdicts have 8 bytes, 0 records need 0", b"", bytearray(8), b""),
        ("verdicts are read-only", WHOLE, bytes(8), b""),
        ("records are not C-contiguous", memoryview(WHOLE * 2)[::2], bytearray(8), b""),
        ("verdicts are not C-contiguous", WHOLE, memoryview(bytearray(16))[::2], b""),
        ("quotes are not C-contiguous", WHOLE, bytearray(8), memoryview(bytes(96))[::2]),
    ],
)
def test_buffers_that_do_not_fit_are_refused_with_their_sizes_and_nothing_is_decided(engine, message, records, verdicts, quotes):
    world = World(engine, ANY_INGRESS)
    world.firewall.server_handle(DB)
    with pytest.raises(ValueError, match=f"^{message}$"):
        world.firewall.decide_many(records, world.now_ns, verdicts, quotes)
    assert not any(world.firewall.stats(world.now_ns).verdicts.values())


@pytest.mark.parametrize(
    ("expected", "after_s"),
    [
        (["NEW", "ESTABLISHED", "ESTABLISHED"], (0, 29, 29 + 119)),
        (["NEW", "NO_RULE", "NO_RULE"], (0, 30, 30)),  # an unanswered question is over after 30 s,
        (["NEW", "ESTABLISHED", "NO_RULE"], (0, 29, 29 + 120)),  # an answered one 120 s after its last packet
    ],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_record_is_judged_at_a_time_of_its_own(engine, shards, expected, after_s):
    world = World(engine, DNS, shards=shards)
    question = udp(CLIENT, DB4, 53)
    records, _ = pack_many([question, reply(question), reply(question)], world.firewall.server_handle)
    verdicts = bytearray(24)
    times = array("Q", [world.now_ns + seconds * 10**9 for seconds in after_s])
    world.firewall.decide_many(records, world.now_ns, verdicts, times=times)
    assert [Reason(entry[1]).name for entry in batched(verdicts, 8)] == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversations=conversations_st, pauses_s=st.lists(st.sampled_from([0, 1, 30, 120]), min_size=40, max_size=40))
def test_a_batch_with_times_is_decide_at_these_times(engine, conversations, pauses_s):
    one_by_one, packed = (World(engine, SSH, DNS, PING, ANY_EGRESS, flows_max=4, fragments_max=4) for _ in range(2))
    asked = [said(*each) for each in conversations]
    times = [packed.now_ns + seconds * 10**9 for seconds in accumulate(pauses_s[: len(asked)])]
    expected = []
    for each, one_by_one.now_ns in zip(asked, times, strict=True):
        expected.append(one_by_one.decide(each).reason)
    records, quotes = pack_many(asked, packed.firewall.server_handle)
    verdicts = bytearray(len(asked) * 8)
    packed.firewall.decide_many(records, packed.now_ns, verdicts, quotes, array("Q", times))
    assert [Reason(entry[1]) for entry in batched(verdicts, 8)] == expected


@pytest.mark.parametrize(
    ("message", "times"),
    [
        ("times have 8 bytes, 2 records need 16", bytes(8)),
        ("times have 24 bytes, 2 records need 16", bytes(24)),
        ("times have 0 bytes, 2 records need 16", b""),
        ("times are not C-contiguous", memoryview(bytes(32))[::2]),
        ("the time of record 0, 99, is before 100", array("Q", [99, 100])),
        ("the time of record 1, 100, is before 101", array("Q", [101, 100])),
    ],
)
def test_times_that_do_not_fit_or_go_back_are_refused_and_nothing_is_decided(engine, message, times):
    world = World(engine, ANY_INGRESS)
    with pytest.raises(ValueError, match=f"^{message}$"):
        world.firewall.decide_many(WHOLE * 2, 100, bytearray(16), b"", times)
    assert not any(world.firewall.stats(world.now_ns).verdicts.values())


def test_no_records_are_no_verdicts(engine):
    assert many(World(engine), b"") == []


def test_the_handle_of_a_server_that_went_never_names_another(engine):
    world = World(engine, ANY_INGRESS)
    world.bind(WEB, "db")
    handle = world.firewall.server_handle
    db, web = handle(DB), handle(WEB)
    assert 0 not in (db, web)
    assert len({db, web}) == 2
    assert (handle("p/unknown"), handle(""), handle(DB)) == (0, 0, db)
    at_web = pack(tcp(CLIENT, "10.0.0.5", 80), web)[0]
    assert names(many(world, at_web)) == [("NEW", 13)]
    world.apply(removed_servers=(WEB,))
    assert handle(WEB) == 0
    world.bind("p/next", "db", addresses=("10.0.0.5",))
    assert handle("p/next") not in (0, db, web)
    assert names(many(world, at_web)) == [("UNKNOWN_SERVER", 1)]
    world.bind(WEB, "db")
    assert handle(WEB) not in (0, db, web, handle("p/next"))
    assert names(many(world, at_web)) == [("UNKNOWN_SERVER", 1)]
    assert handle(DB) == db


def test_a_change_of_a_server_leaves_its_handle(engine):
    world = World(engine, ANY_INGRESS)
    handle = world.firewall.server_handle(DB)
    world.bind(DB, "db", addresses=("10.0.0.77",))
    world.apply(snapshot=True, groups=(world.group("db"),), servers=(world.binding(DB, "db"),))
    assert world.firewall.server_handle(DB) == handle


def test_the_handle_of_a_rule_holds_while_it_is_in_force_or_named_by_a_flow_and_never_names_another(engine):
    world = World(engine, SSH, DNS)
    firewall = world.firewall
    ssh, dns = (answer.rule_handle for answer in many_of(world, SYN_IN, udp(CLIENT, DB4, 53)))
    assert 0 not in (ssh, dns)
    assert (firewall.rule_id(0), firewall.rule_id(ssh), firewall.rule_id(dns)) == ("", "b-ssh", "c-dns")
    world.set_rules(DNS)
    (revoked,) = many_of(world, replace(SYN_IN, tcp_flags=ACK))
    assert (revoked.verdict.reason.name, revoked.rule_handle, revoked.verdict.rule_id) == ("REVOKED", ssh, "b-ssh")
    world.advance(1_000)
    world.set_rules(DNS, PING)
    assert (firewall.rule_id(ssh) in ("", "b-ssh"), firewall.rule_id(dns)) == (True, "c-dns")
    world.set_rules(SSH, DNS, PING)
    again, ping = (answer.rule_handle for answer in many_of(world, tcp(CLIENT, DB4, 22), icmp(CLIENT, DB4, 8)))
    assert ping not in (ssh, dns, again)
    assert (firewall.rule_id(again), firewall.rule_id(ping), firewall.rule_id(ssh) in ("", "b-ssh")) == ("b-ssh", "d-ping", True)


def test_the_rules_that_verdicts_name_are_told_once_each(engine):
    world = World(engine, SSH, DNS)
    asked = [SYN_IN, udp(CLIENT, DB4, 53), tcp(CLIENT, DB4, 23), SYN_IN]
    records, quotes = pack_many(asked, world.firewall.server_handle)
    verdicts = np.zeros(4, verdict_dtype())
    world.firewall.decide_many(records, world.now_ns, verdicts, quotes)
    ssh, dns = (int(handle) for handle in verdicts["rule"][:2])
    assert world.firewall.rules_named(verdicts) == {ssh: "b-ssh", dns: "c-dns"}
    assert world.firewall.rules_named(verdicts, {ssh: "b-ssh"}) == {dns: "c-dns"}
    assert world.firewall.rules_named(verdicts, {ssh, dns}) == {}
    assert world.firewall.rules_named(b"") == {}


@pytest.mark.parametrize("size", [0, 63, 65, 128])
def test_what_is_neither_a_packet_nor_a_record_is_refused(engine, size):
    with pytest.raises(TypeError, match=f"decide takes a Packet or a record of 64 bytes, not {size} bytes"):
        World(engine, ANY_INGRESS).firewall.decide(bytes(size), 0)
