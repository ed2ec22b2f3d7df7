"""Turns a request for verdicts into a filter and the settings of a tap, and verdicts into messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from secgroups.agent.errors import FilterError
from secgroups.agent.filter_values import find_protocol, network_of, rule_id_of, server_of
from secgroups.agent.flow import Action, Reason
from secgroups.agent.packets import packet_message
from secgroups.agent.ruleset import Network
from secgroups.agent.tap import ONE_IN_MAX, TAP_EVENTS_MAX, TapSettings, VerdictEvent
from secgroups.agent.verdict_filter import VerdictFilter
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as pb

VALUES_MAX = 32
TAP_EVENTS_DEFAULT = 4_096

Number = TypeVar("Number", Action, Reason)


def verdict_filter_of(request: pb.WatchVerdictsRequest) -> VerdictFilter:
    """Return the filter. FilterError, which names the field, for a value that nothing can have."""
    for field in ("actions", "reasons", "servers", "source_cidrs", "destination_cidrs", "either_cidrs", "ports", "rule_ids"):
        count = len(getattr(request, field))
        if count > VALUES_MAX:
            raise FilterError(field, f"has {count} values, the most allowed is {VALUES_MAX}")
    return VerdictFilter(
        actions=_numbers(request.actions, Action, "actions"),
        reasons=_numbers(request.reasons, Reason, "reasons"),
        servers=frozenset(server_of(text, f"servers[{at}]") for at, text in enumerate(request.servers)),
        sources=_networks(request.source_cidrs, "source_cidrs"),
        destinations=_networks(request.destination_cidrs, "destination_cidrs"),
        either=_networks(request.either_cidrs, "either_cidrs"),
        ports=frozenset(request.ports),
        protocol=find_protocol(request),
        rule_ids=tuple(_rule_id(text, f"rule_ids[{at}]") for at, text in enumerate(request.rule_ids)),
    )


def tap_settings_of(request: pb.WatchVerdictsRequest, wanted: VerdictFilter) -> TapSettings:
    """Return how the tap has to take. FilterError, which names the field, for what is out of bounds."""
    if request.one_in > ONE_IN_MAX:
        raise FilterError("one_in", f"{request.one_in} is not in 0..{ONE_IN_MAX}")
    if request.buffer_events > TAP_EVENTS_MAX:
        raise FilterError("buffer_events", f"{request.buffer_events} is not in 0..{TAP_EVENTS_MAX}")
    return TapSettings(
        events_max=request.buffer_events or TAP_EVENTS_DEFAULT,
        one_in=request.one_in or 1,
        allowed=Action.ALLOW in wanted.actions,
    )


def event_message(event: VerdictEvent, wall_offset_ns: int) -> pb.VerdictEvent:
    """Return the verdict; ``wall_offset_ns`` is what the wall clock is ahead of the monotonic one."""
    message = pb.VerdictEvent(
        packet=packet_message(event.packet),
        action=types.Action.ValueType(event.verdict.action),
        reason=types.Reason.ValueType(event.verdict.reason),
        rule_id=event.verdict.rule_id,
        opened=event.verdict.opened,
    )
    seconds, nanos = divmod(event.now_ns + wall_offset_ns, 1_000_000_000)
    message.time.CopyFrom(Timestamp(seconds=seconds, nanos=nanos))
    return message


def _numbers(values: Sequence[int], kind: type[Number], field: str) -> frozenset[Number]:
    known = {int(each): each for each in kind}
    for at, value in enumerate(values):
        if value not in known:
            raise FilterError(f"{field}[{at}]", f"{value} is no {kind.__name__.lower()}")
    return frozenset(known[value] for value in values)


def _networks(texts: Sequence[str], field: str) -> tuple[Network, ...]:
    return tuple(network_of(text, f"{field}[{at}]") for at, text in enumerate(texts))


def _rule_id(text: str, field: str) -> str:
    if not text:
        raise FilterError(field, "is empty")
    return rule_id_of(text, field)
