"""Packed records: their layout byte by byte, packets that go there and back."""

from __future__ import annotations

import struct
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
import pytest
from agent_world import (
    CLIENT,
    CLIENT6,
    DB,
    EGRESS,
    FIRST,
    OTHER,
)
from hypothesis import given
from hypothesis import strategies as st

from secgroups.agent.flow import Direction, Fragment, Packet, QuotedPacket, Reason, Verdict
from secgroups.agent.records import (
    QUOTE_BYTES,
    RECORD_BYTES,
    PackedVerdict,
    pack,
    pack_verdict,
    quote_dtype,
    record_dtype,
    unpack,
    unpack_verdict,
    verdict_dtype,
)

DB4 = "10.0.0.9"
NAMED = {7: DB}.get

# Offset, format and name of every field, once more by hand: the contract of clients in other languages.
RECORD_FIELDS = [
    (0, "16s", "source"),
    (16, "16s", "destination"),
    (32, "<I", "server"),
    (36, "<H", "source_port"),
    (38, "<H", "destination_port"),
    (40, "B", "protocol"),
    (41, "B", "ip_version"),
    (42, "B", "direction"),
    (43, "B", "tcp_flags"),
    (44, "B", "icmp_type"),
    (45, "B", "icmp_code"),
    (46, "<H", "icmp_id"),
    (48, "B", "fragment"),
    (49, "3s", "reserved"),
    (52, "<I", "fragment_id"),
    (56, "<I", "length"),
    (60, "<I", "quote"),
]
QUOTE_FIELDS = [
    (0, "16s", "source"),
    (16, "16s", "destination"),
    (32, "<H", "source_port"),
    (34, "<H", "destination_port"),
    (36, "B", "protocol"),
    (37, "B", "ip_version"),
    (38, "B", "icmp_type"),
    (39, "B", "reserved"),
    (40, "<H", "icmp_id"),
    (42, "6s", "reserved_end"),
]
VERDICT_FIELDS = [(0, "B", "action"), (1, "B", "reason"), (2, "B", "flags"), (3, "B", "step"), (4, "<I", "rule")]
MAPPED = bytes(10) + b"\xff\xff"

FULL = Packet(
    server=DB,
    direction=EGRESS,
    source=ip_address("10.1.2.3"),
    destination=ip_address("203.0.113.250"),
    protocol=6,
    source_port=0x1234,
    destination_port=0xABCD,
    tcp_flags=0x92,
    icmp_type=0x21,
    icmp_code=0x22,
    icmp_id=0x5678,
    fragment=FIRST,
    fragment_id=0xA1B2C3D4,
    length=0x01020304,
    quoted=QuotedPacket(
        source=ip_address("2001:db8::1"),
        destination=ip_address("2001:db8::2"),
        protocol=17,
        source_port=0x1122,
        destination_port=0x3344,
        icmp_type=0x55,
        icmp_id=0x6677,
    ),
)


def fields_of(entry, layout):
    return {name: struct.unpack_from(form, entry, at)[0] for at, form, name in layout}


def test_every_field_of_a_record_stands_at_its_offset():
    record, quoted = pack(FULL, 0x0708090A, 0x11121314)
    assert fields_of(record, RECORD_FIELDS) == {
        "source": MAPPED + bytes([10, 1, 2, 3]),
        "destination": MAPPED + bytes([203, 0, 113, 250]),
        "server": 0x0708090A,
        "source_port": 0x1234,
        "destination_port": 0xABCD,
        "protocol": 6,
        "ip_version": 4,
        "direction": 2,
        "tcp_flags": 0x92,
        "icmp_type": 0x21,
        "icmp_code": 0x22,
        "icmp_id": 0x5678,
        "fragment": 1,
        "reserved": bytes(3),
        "fragment_id": 0xA1B2C3D4,
        "length": 0x01020304,
        "quote": 0x11121314,
    }
    assert fields_of(quoted, QUOTE_FIELDS) == {
        "source": ip_address("2001:db8::1").packed,
        "destination": ip_address("2001:db8::2").packed,
        "source_port": 0x1122,
        "destination_port": 0x3344,
        "protocol": 17,
        "ip_version": 6,
        "icmp_type": 0x55,
        "reserved": 0,
        "icmp_id": 0x6677,
        "reserved_end": bytes(6),
    }


def test_every_field_of_a_verdict_stands_at_its_offset():
    entry = pack_verdict(Verdict(reason=Reason.NEW, rule_id="r", opened=True), 13, 0x01020304)
    assert fields_of(entry, VERDICT_FIELDS) == {"action": 1, "reason": 1, "flags": 1, "step": 13, "rule": 0x01020304}
    entry = pack_verdict(Verdict(reason=Reason.REVOKED), 9, 0)
    assert fields_of(entry, VERDICT_FIELDS) == {"action": 2, "reason": 26, "flags": 0, "step": 9, "rule": 0}


@pytest.mark.parametrize(
    ("size", "layout", "dtype"),
    [
        (64, RECORD_FIELDS, record_dtype),
        (48, QUOTE_FIELDS, quote_dtype),
        (8, VERDICT_FIELDS, verdict_dtype),
    ],
    ids=["record", "quote", "verdict"],
)
def test_the_numpy_types_are_the_same_layout_without_gaps(size, layout, dtype):
    made = dtype()
    assert made.itemsize == size == sum(struct.calcsize(form) for _, form, _ in layout)
    noise = bytes(range(100, 100 + size))
    values = np.frombuffer(noise, made)[0]
    assert {name: made.fields[name][1] for name in made.names} == {name: at for at, _, name in layout}
    for name, expected in fields_of(noise, layout).items():
        assert bytes(values[name]) == expected if isinstance(expected, bytes) else values[name] == expected


def test_without_numpy_its_types_say_so_and_nothing_else_misses_it():
    code = (
        "import sys; sys.modules['numpy'] = None; from secgroups.agent import records\n"
        "try: records.record_dtype()\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "NumPy is not installed, and the agent does not need it: install numpy to use its types"


ipv4_st = st.one_of(st.sampled_from([CLIENT, OTHER, DB4]).map(ip_address), st.builds(IPv4Address, st.integers(0, 2**32 - 1)))
ipv6_st = st.one_of(
    st.sampled_from([CLIENT6, "2001:db8::9", "::ffff:10.0.0.9"]).map(ip_address),
    st.builds(IPv6Address, st.integers(0, 2**128 - 1)),
)
ports_st = st.integers(0, 65_535)
bytes_st = st.integers(0, 255)
words_st = st.integers(0, 2**32 - 1)


def quotes_of(addresses):
    return st.builds(
        QuotedPacket,
        source=addresses,
        destination=addresses,
        protocol=bytes_st,
        source_port=ports_st,
        destination_port=ports_st,
        icmp_type=bytes_st,
        icmp_id=ports_st,
    )


def packets_of(addresses):
    return st.builds(
        Packet,
        server=st.just(DB),
        direction=st.sampled_from(Direction),
        source=addresses,
        destination=addresses,
        protocol=bytes_st,
        source_port=ports_st,
        destination_port=ports_st,
        tcp_flags=bytes_st,
        icmp_type=bytes_st,
        icmp_code=bytes_st,
        icmp_id=ports_st,
        fragment=st.sampled_from(Fragment),
        fragment_id=words_st,
        quoted=st.one_of(st.none(), quotes_of(ipv4_st), quotes_of(ipv6_st)),
        length=words_st,
    )


@given(asked=st.one_of(packets_of(ipv4_st), packets_of(ipv6_st)), number=st.integers(1, 3))
def test_every_packet_that_fits_its_headers_comes_back_as_it_went(asked, number):
    record, quoted = pack(asked, 7, number)
    assert (len(record), len(quoted)) == (RECORD_BYTES, QUOTE_BYTES if asked.quoted else 0)
    assert unpack(record, bytes(QUOTE_BYTES) * (number - 1) + quoted, NAMED) == asked


@given(reason=st.sampled_from(Reason), opened=st.booleans(), step=st.integers(1, 13), handle=words_st)
def test_every_verdict_comes_back_as_it_went(reason, opened, step, handle):
    verdict = Verdict(reason=reason, rule_id=f"r{handle}" if handle else "", opened=opened)
    assert unpack_verdict(pack_verdict(verdict, step, handle), lambda asked: f"r{asked}") == PackedVerdict(
        verdict=verdict, step=step, rule_handle=handle
    )


@pytest.mark.parametrize("entry", [bytes(8), b"\x02\x01\x00\x0d\x00\x00\x00\x00", b"\x01\xff\x00\x0d\x00\x00\x00\x00"])
def test_what_is_no_verdict_does_not_pass_for_one(entry):
    with pytest.raises(ValueError, match=r"is not a valid Reason|does not go with reason"):
        unpack_verdict(entry, str)
