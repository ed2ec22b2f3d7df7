"""What goes out is put together from ready parts; it must be what protobuf itself would have made of the same."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from secgroups.controller.errors import InvalidError
from secgroups.controller.model import TCP, Direction, Rule, RuleSpec
from secgroups.controller.services.stream_wire import Wire, ack_of, hello_of, preview_result_of, report_message, report_of
from secgroups.controller.stream_messages import AddressSet, AddressSetPatch, GroupRules, ServerBinding, Update
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import types_pb2 as types

SPEC = RuleSpec(direction=Direction.INGRESS, protocol=TCP, ports=(22, 80), remote=ip_network("0.0.0.0/0"))
RULE = Rule(id="r1", project="p", group_id="g1", spec=SPEC, created_us=1, revision=3)
SET = AddressSet(group_id="g2", version=4, ipv4=bytes(8), ipv6=bytes(32))
PATCH = AddressSetPatch(group_id="g2", base_version=4, version=300, added_ipv4=bytes(4), removed_ipv6=bytes(16))
GROUP = GroupRules(group_id="g1", version=3, name="web", rules=(RULE,))
SERVER = ServerBinding(server="p/s1", version=2, ipv4=bytes(4), ipv6=b"", group_ids=("g1", "g2"))

SET_MESSAGE = pb.AddressSet(group_id="g2", version=4, ipv4=bytes(8), ipv6=bytes(32))
PATCH_MESSAGE = pb.AddressSetPatch(group_id="g2", base_version=4, version=300, added_ipv4=bytes(4), removed_ipv6=bytes(16))
GROUP_MESSAGE = pb.GroupRules(
    group_id="g1",
    version=3,
    name="web",
    rules=[
        pb.PolicyRule(
            id="r1",
            spec=types.RuleSpec(
                direction=types.DIRECTION_INGRESS,
                protocol=types.PROTOCOL_TCP,
                ports=types.PortRange(first=22, last=80),
                cidr="0.0.0.0/0",
            ),
        )
    ],
)
SERVER_MESSAGE = pb.ServerBinding(server="p/s1", version=2, ipv4=bytes(4), group_ids=["g1", "g2"])


def parsed(update: Update, wire: Wire) -> pb.Update:
    response = pb.SubscribeResponse.FromString(wire.encoded(update))
    assert response.WhichOneof("message") == "update"
    return response.update


@pytest.mark.parametrize(
    ("expected", "update"),
    [
        (pb.Update(nonce=1, revision=1), Update(nonce=1, revision=1, more=False)),
        (pb.Update(nonce=127, revision=128, more=True), Update(nonce=127, revision=128, more=True)),
        (pb.Update(nonce=128, revision=(1 << 63) + 5), Update(nonce=128, revision=(1 << 63) + 5, more=False)),
        (pb.Update(nonce=1, revision=9, sets=[SET_MESSAGE]), Update(nonce=1, revision=9, more=False, sets=(SET,))),
        (
            pb.Update(nonce=1, revision=9, set_patches=[PATCH_MESSAGE]),
            Update(nonce=1, revision=9, more=False, set_patches=(PATCH,)),
        ),
        (pb.Update(nonce=1, revision=9, groups=[GROUP_MESSAGE]), Update(nonce=1, revision=9, more=False, groups=(GROUP,))),
        (pb.Update(nonce=1, revision=9, servers=[SERVER_MESSAGE]), Update(nonce=1, revision=9, more=False, servers=(SERVER,))),
        (
            pb.Update(nonce=1, revision=9, removed_servers=["p/a"], removed_groups=["b"], removed_sets=["c", "d"]),
            Update(nonce=1, revision=9, more=False, removed_servers=("p/a",), removed_groups=("b",), removed_sets=("c", "d")),
        ),
        (
            pb.Update(nonce=1, revision=9, sets=[SET_MESSAGE, SET_MESSAGE], set_patches=[PATCH_MESSAGE], servers=[SERVER_MESSAGE]),
            Update(nonce=1, revision=9, more=False, sets=(SET, SET), set_patches=(PATCH,), servers=(SERVER,)),
        ),
    ],
)
def test_an_update_on_the_wire_is_the_message_that_it_says(expected: pb.Update, update: Update) -> None:
    wire = Wire("controller", 10.0)
    # The second time it is made of parts that are ready.
    assert [parsed(update, wire), parsed(update, wire)] == [expected, expected]


def test_the_commit_time_of_an_update_is_in_microseconds() -> None:
    update = Update(nonce=1, revision=2, more=False, oldest_commit_us=1_700_000_000_123_456)
    assert parsed(update, Wire("controller", 10.0)).oldest_commit_time.ToMicroseconds() == 1_700_000_000_123_456


def test_what_is_ready_is_not_taken_for_another_version() -> None:
    wire = Wire("controller", 10.0)
    later = GroupRules(group_id="g1", version=4, name="web", rules=())
    answers = [parsed(Update(nonce=1, revision=9, more=False, groups=(group,)), wire) for group in (GROUP, later, GROUP)]
    assert [(update.groups[0].version, len(update.groups[0].rules)) for update in answers] == [(3, 1), (4, 0), (3, 1)]


def test_what_is_kept_ready_is_bounded_with_all_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_max = 2 << 20
    monkeypatch.setattr("secgroups.controller.services.stream_wire.READY_BYTES_MAX", bytes_max)
    wire = Wire("controller", 10.0)
    tracemalloc.start()
    try:
        for number in range(4_000):
            server = ServerBinding(server=f"p/s{number}", version=1, ipv4=bytes(4), ipv6=b"", group_ids=("g",))
            wire.encoded(Update(nonce=1, revision=1, more=False, servers=(server,)))
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < bytes_max


def messages_of(descriptor: Descriptor, depth: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """Any fields of a message, in the form that its constructor takes."""
    fields = {field.name: values_of(field, depth) for field in descriptor.fields if field.message_type is None or depth}
    return st.fixed_dictionaries({}, optional=fields)


def values_of(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return st.dictionaries(values_of(key, 0), values_of(value, 0), max_size=3)
    if field.message_type is not None:
        one = messages_of(field.message_type, depth - 1)
    else:
        one = {
            FieldDescriptor.CPPTYPE_STRING: st.binary(max_size=300) if field.type == field.TYPE_BYTES else st.text(max_size=300),
            FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
            FieldDescriptor.CPPTYPE_ENUM: st.integers(-(1 << 31), (1 << 31) - 1),
            FieldDescriptor.CPPTYPE_INT32: st.integers(-(1 << 31), (1 << 31) - 1),
            FieldDescriptor.CPPTYPE_UINT32: st.integers(0, (1 << 32) - 1),
            FieldDescriptor.CPPTYPE_INT64: st.integers(-(1 << 63), (1 << 63) - 1),
            FieldDescriptor.CPPTYPE_UINT64: st.integers(0, (1 << 64) - 1),
            FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
            FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
        }[field.cpp_type]
    return st.lists(one, max_size=3) if field.is_repeated else one


@pytest.mark.parametrize(
    ("message", "take"),
    [
        (pb.Hello, lambda made: hello_of(pb.SubscribeRequest(hello=made))),
        (pb.Ack, ack_of),
        (pb.Report, lambda made: report_message(report_of(made, 0))),
        (pb.PreviewResult, preview_result_of),
    ],
    ids=["hello", "ack", "report", "preview_result"],
)
@given(data=st.data())
def test_whatever_an_agent_says_is_taken_or_refused_by_name(message: type[Message], take: Callable[[Any], object], data) -> None:
    fields = data.draw(messages_of(message.DESCRIPTOR))
    with suppress(InvalidError):
        assert take(message(**fields)) is not None


@pytest.mark.parametrize(("seconds", "nanos"), [(1 << 62, 0), (-(1 << 62), 0), (0, -1), (0, 1 << 30)])
def test_a_boot_time_that_is_none_is_refused_by_name(seconds: int, nanos: int) -> None:
    hello = pb.Hello(agent_id="a", boot_id="b")
    hello.boot_time.seconds, hello.boot_time.nanos = seconds, nanos
    with pytest.raises(InvalidError, match=r"hello\.boot_time"):
        hello_of(pb.SubscribeRequest(hello=hello))
