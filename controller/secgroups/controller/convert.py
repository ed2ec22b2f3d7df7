"""Messages of ``secgroups.v1`` to values of the model, with every check of a field, and back.

What is wrong raises InvalidError with the field's path as the caller wrote it; a list too long to be looked at, LimitError.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from secgroups.controller.errors import InvalidError, LimitError, Violation
from secgroups.controller.model import (
    ANYWHERE,
    ICMP,
    TCP,
    UDP,
    Address,
    AnywhereRemote,
    Direction,
    Group,
    GroupRemote,
    Remote,
    Rule,
    RuleSpec,
    Server,
    check_name,
    etag_of,
    parse_cidr,
    parse_server_address,
)
from secgroups.controller.preview import FlowsCut, Preview
from secgroups.v1 import types_pb2 as pb

REQUEST_ID_CHARACTERS_MAX = 128
ROWS_MAX = 1_000
PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
PREVIEW_IDS_MAX = 1_000
# The longest id of a page is a server's and a group's: two names of 128 characters, four bytes each.
PAGE_TOKEN_CHARACTERS_MAX = 2_048
_QUERY_HASH_BYTES = 8

_DIRECTIONS = {pb.DIRECTION_INGRESS: Direction.INGRESS, pb.DIRECTION_EGRESS: Direction.EGRESS}
_NUMBERS = {pb.PROTOCOL_TCP: TCP, pb.PROTOCOL_UDP: UDP, pb.PROTOCOL_ICMP: ICMP}
_PROTOCOLS = {number: protocol for protocol, number in _NUMBERS.items()}

# Most rules name one of few prefixes, and its text takes as long as all the rest of a rule.
_cidr = lru_cache(maxsize=4_096)(str)

T = TypeVar("T")
V = TypeVar("V")
P = ParamSpec("P")


class Checks:
    """Collects what is wrong with a request, so that one answer names it all."""

    def __init__(self) -> None:
        self._found: list[Violation] = []

    def take(self, convert: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Return what ``convert`` makes of a field. If it refuses, the value is not to be used and ``done`` will raise."""
        try:
            return convert(*arguments, **named)
        except InvalidError as error:
            self._found.extend(error.violations)
            return cast("T", None)

    def done(self) -> None:
        """InvalidError with everything that was refused, if anything was."""
        if self._found:
            raise InvalidError.of(self._found)


class _WithProject(Protocol):
    @property
    def project(self) -> str: ...


def project_of(request: _WithProject) -> str:
    """Return the project that a request names."""
    return check_name(request.project, "project")


def required(value: str, field: str) -> str:
    """Return an id that a request must name. An id that is none is simply not found."""
    if not value:
        raise InvalidError(field, "must not be empty")
    return value


def request_id_of(value: str) -> str:
    """Return the request id, which may be empty."""
    if len(value) > REQUEST_ID_CHARACTERS_MAX:
        raise InvalidError("request_id", f"has {len(value)} characters, the most allowed is {REQUEST_ID_CHARACTERS_MAX}")
    return value


def others_planned_of(value: int, validate_only: bool) -> int:
    """Return how many more objects of a kind a project is to have when one of that kind is made."""
    if value and not validate_only:
        raise InvalidError("others_planned", "counts with validate_only alone; leave it out")
    return value


def mask_of(mask: FieldMask, allowed: Sequence[str]) -> frozenset[str]:
    """Return the paths of an update mask."""
    choices = ", ".join(allowed)
    if not mask.paths:
        raise InvalidError("update_mask", f"must not be empty; it may name {choices}")
    for path in mask.paths:
        if path not in allowed:
            raise InvalidError("update_mask", f"{path!r} can't be changed; it may name {choices}")
    if len(set(mask.paths)) != len(mask.paths):
        raise InvalidError("update_mask", "names a field twice")
    return frozenset(mask.paths)


class _WithOptional(Protocol):
    def HasField(self, field_name: Any) -> bool: ...  # noqa: N802


def given(message: _WithOptional, field: str) -> int | None:
    """Return an optional number of a message, None where it is not given."""
    return int(getattr(message, field)) if message.HasField(field) else None


def protocol_of(protocol: pb.Protocol.ValueType, number: int | None) -> int | None:
    """Return the IANA number, None for any. ``number`` is protocol_number, None where it is not given."""
    if protocol == pb.PROTOCOL_NUMBER:
        if number is None:
            raise InvalidError("protocol_number", "must be given with PROTOCOL_NUMBER, 0 to 255")
        if number > 255:
            raise InvalidError("protocol_number", f"is {number}, must be 0 to 255")
        return number
    if number is not None:
        raise InvalidError("protocol_number", "is for PROTOCOL_NUMBER only: leave it out or set protocol to PROTOCOL_NUMBER")
    if protocol == pb.PROTOCOL_ANY:
        return None
    if protocol not in _NUMBERS:
        raise InvalidError("protocol", _no_choice(pb.Protocol.items(), protocol))
    return _NUMBERS[protocol]


def _direction_of(direction: pb.Direction.ValueType) -> Direction:
    if direction not in _DIRECTIONS:
        raise InvalidError("direction", _no_choice(pb.Direction.items(), direction))
    return _DIRECTIONS[direction]


def _no_choice(choices: Iterable[tuple[str, int]], value: int) -> str:
    """Return what is wrong with the value of an enum that is not given or not known."""
    names = ", ".join(name for name, number in choices if number)
    return f"{f'{value} is not known' if value else 'must be given'}: one of {names}"


def spec_of(message: pb.RuleSpec) -> RuleSpec:
    """Return what a rule allows."""
    checks = Checks()
    direction = checks.take(_direction_of, message.direction)
    protocol = checks.take(protocol_of, message.protocol, given(message, "protocol_number"))
    remote = checks.take(_remote_of, message)
    checks.done()
    ports = None
    if message.HasField("ports"):
        ports = (message.ports.first, message.ports.last or message.ports.first)
    return RuleSpec(
        direction=direction,
        protocol=protocol,
        ports=ports,
        icmp_type=given(message, "icmp_type"),
        icmp_code=given(message, "icmp_code"),
        remote=remote,
        description=message.description,
    )


def _remote_of(message: pb.RuleSpec) -> Remote:
    match message.WhichOneof("remote"):
        case "cidr":
            return parse_cidr(message.cidr, "cidr")
        case "group_id":
            return GroupRemote(required(message.group_id, "group_id"))
        case "anywhere":
            return ANYWHERE
        case _:
            raise InvalidError("remote", "must be given: one of cidr, group_id, anywhere")


def one_spec_of(message: pb.RuleSpec) -> RuleSpec:
    """Return the rule of a request that holds one."""
    try:
        return spec_of(message)
    except InvalidError as error:
        raise error.within("rule") from None


def specs_of(messages: Sequence[pb.RuleSpec], *, fewest: int) -> list[RuleSpec]:
    """Return the rules of a bulk request. One error names what is wrong with each row."""
    if not fewest <= len(messages) <= ROWS_MAX:
        raise InvalidError("rules", f"has {len(messages)} rows, must have {fewest} to {ROWS_MAX}")
    return _each(messages, "rules", spec_of)


def addresses_of(values: Sequence[str], addresses_max: int) -> list[Address]:
    """Return a server's addresses. One error names every entry that is none."""
    if not values:
        raise InvalidError("addresses", "must not be empty; a server has at least one address")
    if len(values) > max(ROWS_MAX, addresses_max):
        raise _too_many("addresses", len(values), "addresses_per_server", addresses_max)
    return _each(values, "addresses", lambda value: parse_server_address(value, ""))


def group_ids_of(values: Sequence[str], groups_max: int) -> list[str]:
    """Return the ids of a list of groups."""
    if len(values) > max(ROWS_MAX, groups_max):
        raise _too_many("group_ids", len(values), "groups_per_server", groups_max)
    return _each(values, "group_ids", lambda value: required(value, ""))


def _too_many(field: str, count: int, limit: str, most: int) -> LimitError:
    return LimitError(field, f"{field} has {count} entries, the most allowed is {most}", limit=limit, most=most)


def _each(values: Sequence[V], field: str, convert: Callable[[V], T]) -> list[T]:
    converted: list[T] = []
    violations: list[Violation] = []
    for index, value in enumerate(values):
        try:
            converted.append(convert(value))
        except InvalidError as error:
            violations.extend(error.within(f"{field}[{index}]").violations)
    if violations:
        raise InvalidError.of(violations)
    return converted


# Pages.


def page_size_of(value: int) -> int:
    """Return how many objects a page holds."""
    return min(value, PAGE_SIZE_MAX) if value else PAGE_SIZE_DEFAULT


def page_token(query: Sequence[str], after: str) -> str:
    """Return the token that goes on after the id ``after`` in the list that ``query`` describes."""
    return base64.urlsafe_b64encode(_query_hash(query) + after.encode()).decode()


def page_start(query: Sequence[str], token: str) -> str:
    """Return the id after which a page begins. InvalidError for a token of another list or of no list."""
    if not token:
        return ""
    try:
        told = base64.b64decode(token, altchars=b"-_", validate=True) if len(token) <= PAGE_TOKEN_CHARACTERS_MAX else b""
        hashed, after = told[:_QUERY_HASH_BYTES], told[_QUERY_HASH_BYTES:].decode()
    except ValueError:
        hashed, after = b"", ""
    if hashed != _query_hash(query):
        raise InvalidError("page_token", "is not one that this list gave; begin again without it")
    return after


def _query_hash(query: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps(list(query)).encode()).digest()[:_QUERY_HASH_BYTES]


# Objects as messages.


def timestamp(time_us: int) -> Timestamp:
    """Return microseconds since the Unix epoch as a message."""
    seconds, micros = divmod(time_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)


def spec_message(spec: RuleSpec) -> pb.RuleSpec:
    """Return what a rule allows, in canonical form."""
    message = pb.RuleSpec(description=spec.description)
    fill_spec(message, spec)
    return message


def fill_spec(message: pb.RuleSpec, spec: RuleSpec) -> None:
    """Write what a rule allows into a message, all but the description."""
    message.direction = pb.Direction.ValueType(spec.direction)
    if spec.protocol is None:
        message.protocol = pb.PROTOCOL_ANY
    elif spec.protocol in _PROTOCOLS:
        message.protocol = _PROTOCOLS[spec.protocol]
    else:
        message.protocol = pb.PROTOCOL_NUMBER
        message.protocol_number = spec.protocol
    if spec.ports is not None:
        ports = message.ports
        ports.first, ports.last = spec.ports
    if spec.icmp_type is not None:
        message.icmp_type = spec.icmp_type
    if spec.icmp_code is not None:
        message.icmp_code = spec.icmp_code
    if isinstance(spec.remote, GroupRemote):
        message.group_id = spec.remote.group_id
    elif isinstance(spec.remote, AnywhereRemote):
        message.anywhere.SetInParent()
    else:
        message.cidr = _cidr(spec.remote)


def rule_message(rule: Rule) -> pb.Rule:
    """Return a rule."""
    return pb.Rule(
        id=rule.id,
        project=rule.project,
        group_id=rule.group_id,
        spec=spec_message(rule.spec),
        created=timestamp(rule.created_us),
        etag=etag_of(rule.revision),
    )


def group_message(group: Group, *, rule_count: int, server_count: int) -> pb.Group:
    """Return a group."""
    return pb.Group(
        id=group.id,
        project=group.project,
        name=group.name,
        description=group.description,
        created=timestamp(group.created_us),
        updated=timestamp(group.updated_us),
        etag=etag_of(group.revision),
        is_default=group.is_default,
        rule_count=rule_count,
        server_count=server_count,
    )


def server_message(server: Server) -> pb.Server:
    """Return a server."""
    return pb.Server(
        project=server.project,
        id=server.id,
        name=server.name,
        addresses=[str(address) for address in server.addresses],
        agent_id=server.agent_id,
        group_ids=server.group_ids,
        created=timestamp(server.created_us),
        updated=timestamp(server.updated_us),
        etag=etag_of(server.revision),
    )


def preview_message(preview: Preview) -> pb.Preview:
    """Return what a change would do."""
    message = pb.Preview(
        server_ids=preview.server_ids[:PREVIEW_IDS_MAX],
        server_count=len(preview.server_ids),
        agent_ids=preview.agent_ids[:PREVIEW_IDS_MAX],
        agent_count=len(preview.agent_ids),
        rules_gained=[rule_message(rule) for rule in preview.rules_gained],
        rules_lost=[rule_message(rule) for rule in preview.rules_lost],
    )
    if preview.flows_cut is not None:
        message.flows_cut.CopyFrom(_flows_cut_message(preview.flows_cut))
    return message


def _flows_cut_message(cut: FlowsCut) -> pb.FlowsCut:
    uncounted = sorted(cut.uncounted.items())
    return pb.FlowsCut(
        flows=cut.flows,
        agents_counted=cut.agents_counted,
        uncounted=[pb.UncountedAgent(agent_id=agent_id, reason=reason) for agent_id, reason in uncounted[:PREVIEW_IDS_MAX]],
        uncounted_count=len(uncounted),
    )
