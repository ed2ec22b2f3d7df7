"""The stream's plain messages as the bytes that are sent, and back with every bound checked: what an agent says may be anything."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from itertools import pairwise

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from secgroups.controller.convert import fill_spec
from secgroups.controller.delays import DelayCounts
from secgroups.controller.errors import InvalidError
from secgroups.controller.model import check_name
from secgroups.controller.stream_messages import (
    Ack,
    AddressSet,
    AddressSetPatch,
    Bookmark,
    GoAway,
    GroupRules,
    HeldBack,
    Hello,
    Kind,
    ObjectKey,
    Outbound,
    PreviewRequest,
    PreviewResult,
    Rejected,
    Report,
    ServerBinding,
    StreamObject,
    SyncPoint,
    Update,
    Welcome,
)
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import types_pb2 as types

# An agent of a very large machine guards a thousand servers; ten times that and their groups and sets are below this.
HELD_MAX = 200_000
REJECTED_MAX = 10_000
TEXT_CHARACTERS_MAX = 256
REASON_CHARACTERS_MAX = 512
FLOWS_MAX = 1 << 40
DELAY_BOUNDS_MAX = 64
# What a clock can be off by: what agents say is not to overflow what it is told on in.
CLOCK_AHEAD_MAX_US = 100 * 366 * 86_400 * 1_000_000

# Ready-made objects kept for the next agent that needs them: the bytes, and what an entry with its object takes beside them.
READY_BYTES_MAX = 64 << 20
READY_ENTRY_BYTES = 1_024

_KINDS = {pb.OBJECT_KIND_SERVER: Kind.SERVER, pb.OBJECT_KIND_GROUP: Kind.GROUP, pb.OBJECT_KIND_SET: Kind.SET}


class Wire:
    """Makes the bytes of ``SubscribeResponse`` messages; those of each version of an object once for all streams.

    Fields of a protobuf message may stand in any order and be put together from parts, so an update is a short head of its own and
    the bytes of its objects, which are the same for every agent.
    """

    def __init__(self, controller_id: str, heartbeat_s: float) -> None:
        self._controller_id = controller_id
        self._heartbeat_s = heartbeat_s
        self._ready: OrderedDict[tuple[bytes, ObjectKey], tuple[StreamObject | AddressSetPatch, bytes]] = OrderedDict()
        self._ready_bytes = 0

    def encoded(self, message: Outbound) -> bytes:
        """Return ``message`` as it is sent."""
        if isinstance(message, Update):
            update = self._update(message)
            return b"".join((_UPDATE_TAG, _varint(len(update)), update))
        return self._small(message).SerializeToString()

    def _small(self, message: Outbound) -> pb.SubscribeResponse:
        match message:
            case SyncPoint():
                point = pb.SyncPoint(
                    nonce=message.nonce,
                    revision=message.revision,
                    state_digest=message.state_digest,
                    snapshot_end=message.snapshot_end,
                )
                return pb.SubscribeResponse(sync_point=point)
            case Bookmark():
                return pb.SubscribeResponse(bookmark=pb.Bookmark(revision=message.revision))
            case GoAway():
                gone = pb.GoAway(reason=message.reason)
                gone.reconnect_after.FromMilliseconds(round(message.reconnect_after_s * 1000))
                return pb.SubscribeResponse(go_away=gone)
            case PreviewRequest():
                request = pb.PreviewRequest(id=message.id, update=pb.Update.FromString(self._update(message.update)))
                request.timeout.FromMilliseconds(round(message.timeout_s * 1000))
                return pb.SubscribeResponse(preview_request=request)
            case Welcome():
                welcome = pb.Welcome(
                    controller_id=self._controller_id,
                    store_epoch=message.store_epoch,
                    timeline_id=message.timeline_id,
                    revision=message.revision,
                    mode=pb.SyncMode.ValueType(message.mode),
                )
                welcome.heartbeat.FromMilliseconds(round(self._heartbeat_s * 1000))
                return pb.SubscribeResponse(welcome=welcome)
            case Update():
                raise AssertionError("an update is put together from parts")

    def _update(self, update: Update) -> bytes:
        parts = [_NONCE_TAG, _varint(update.nonce), _REVISION_TAG, _varint(update.revision)]
        if update.more:
            parts.append(_MORE)
        if update.oldest_commit_us:
            parts.append(_commit_time(update.oldest_commit_us))
        for objects in (update.sets, update.set_patches, update.groups, update.servers):
            parts += [self._object(value) for value in objects]
        if update.removed_servers or update.removed_groups or update.removed_sets:
            removals = pb.Update(
                removed_servers=update.removed_servers,
                removed_groups=update.removed_groups,
                removed_sets=update.removed_sets,
            )
            parts.append(removals.SerializeToString())
        return b"".join(parts)

    def _object(self, value: StreamObject | AddressSetPatch) -> bytes:
        """Return a value as a field of an update, with its tag and its length."""
        tag = _TAGS[type(value)]
        key = (tag, value.key)
        held = self._ready.get(key)
        # The newest is what most agents need; a part of a large set has the same key and version as the whole.
        if held is not None and held[0] is value:
            self._ready.move_to_end(key)
            return held[1]
        body = _object_message(value).SerializeToString()
        made = b"".join((tag, _varint(len(body)), body))
        if held is not None:
            self._ready_bytes -= _ready_size(*held)
        self._ready[key] = (value, made)
        self._ready_bytes += _ready_size(value, made)
        while self._ready_bytes > READY_BYTES_MAX and len(self._ready) > 1:
            _, oldest = self._ready.popitem(last=False)
            self._ready_bytes -= _ready_size(*oldest)
        return made


def _ready_size(value: StreamObject | AddressSetPatch, made: bytes) -> int:
    return READY_ENTRY_BYTES + value.size_bytes + len(made)


@lru_cache(maxsize=64)
def _commit_time(commit_us: int) -> bytes:
    """Return the field of an update that tells when its oldest change was committed: the same for all agents that it touches."""
    head = pb.Update()
    head.oldest_commit_time.FromMicroseconds(commit_us)
    return head.SerializeToString()


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _BYTES[value]
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


# How the value of a field is written: as a varint, or as its length and its bytes.
_VARINT, _LENGTH = 0, 2
_BYTES = tuple(bytes([value]) for value in range(0x80))


def _tag(message: type[Message], field: str, written: int = _LENGTH) -> bytes:
    """Return what stands before the value of a field."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | written)


_UPDATE_TAG = _tag(pb.SubscribeResponse, "update")
_NONCE_TAG = _tag(pb.Update, "nonce", _VARINT)
_REVISION_TAG = _tag(pb.Update, "revision", _VARINT)
_MORE = _tag(pb.Update, "more", _VARINT) + b"\x01"
_TAGS: dict[type[StreamObject | AddressSetPatch], bytes] = {
    AddressSet: _tag(pb.Update, "sets"),
    AddressSetPatch: _tag(pb.Update, "set_patches"),
    GroupRules: _tag(pb.Update, "groups"),
    ServerBinding: _tag(pb.Update, "servers"),
}


def _object_message(value: StreamObject | AddressSetPatch) -> Message:
    match value:
        case ServerBinding():
            return pb.ServerBinding(
                server=value.server, version=value.version, ipv4=value.ipv4, ipv6=value.ipv6, group_ids=value.group_ids
            )
        case GroupRules():
            group = pb.GroupRules(group_id=value.group_id, version=value.version, name=value.name)
            for rule in value.rules:
                # In place: a message that is put into another is copied. Agents have no use for a description.
                fill_spec(group.rules.add(id=rule.id).spec, rule.spec)
            return group
        case AddressSet():
            return pb.AddressSet(group_id=value.group_id, version=value.version, ipv4=value.ipv4, ipv6=value.ipv6)
        case AddressSetPatch():
            return pb.AddressSetPatch(
                group_id=value.group_id,
                base_version=value.base_version,
                version=value.version,
                added_ipv4=value.added_ipv4,
                added_ipv6=value.added_ipv6,
                removed_ipv4=value.removed_ipv4,
                removed_ipv6=value.removed_ipv6,
            )


def hello_of(request: pb.SubscribeRequest) -> Hello:
    """Return the first message of a stream. InvalidError if it is none or claims what can't be."""
    if request.WhichOneof("message") != "hello":
        raise InvalidError("hello", "must be the first message of a stream")
    message = request.hello
    check_name(message.agent_id, "hello.agent_id")
    check_name(message.boot_id, "hello.boot_id")
    for field in ("version", "host", "store_epoch", "timeline_id"):
        text = getattr(message, field)
        if len(text) > TEXT_CHARACTERS_MAX:
            raise InvalidError(f"hello.{field}", f"has {len(text)} characters, the most allowed is {TEXT_CHARACTERS_MAX}")
    if len(message.held) > HELD_MAX:
        raise InvalidError("hello.held", f"has {len(message.held)} objects, the most allowed is {HELD_MAX}")
    held = {_key_of(item, f"hello.held[{number}]"): item.version for number, item in enumerate(message.held)}
    return Hello(
        agent_id=message.agent_id,
        boot_id=message.boot_id,
        boot_time_us=_microseconds_of(message.boot_time, "hello.boot_time"),
        version=message.version,
        host=message.host,
        store_epoch=message.store_epoch,
        timeline_id=message.timeline_id,
        applied_revision=message.applied_revision,
        held=held,
        state_digest=message.state_digest,
        window_messages=message.window.messages,
        window_bytes=message.window.bytes,
        held_back=_held_back_of(message.held_back) if message.HasField("held_back") else None,
    )


def _microseconds_of(time: Timestamp, field: str) -> int:
    try:
        return time.ToMicroseconds()
    except ValueError as error:
        raise InvalidError(field, f"is no time: {error}") from None


def _held_back_of(message: pb.HeldBack) -> HeldBack:
    share = message.max_removal
    if not 0 <= share <= 1:
        raise InvalidError("hello.held_back.max_removal", f"is {share:g}, must be 0 to 1")
    return HeldBack(
        revision=message.revision,
        servers_removed=message.servers_removed,
        servers_held=message.servers_held,
        max_removal=share,
    )


def ack_of(message: pb.Ack) -> Ack:
    """Return an acknowledgement. InvalidError if it names what is no object."""
    if not message.rejected:
        return Ack(
            nonce=message.nonce,
            applied_revision=message.applied_revision,
            apply_us=message.apply_micros,
            received_nonce=message.received_nonce,
        )
    if len(message.rejected) > REJECTED_MAX:
        raise InvalidError("ack.rejected", f"has {len(message.rejected)} objects, the most allowed is {REJECTED_MAX}")
    rejected = tuple(
        Rejected(
            key=_key_of(item.object, f"ack.rejected[{number}].object"),
            version=item.object.version,
            code=item.code,
            message=item.message[:REASON_CHARACTERS_MAX],
        )
        for number, item in enumerate(message.rejected)
    )
    return Ack(
        nonce=message.nonce,
        applied_revision=message.applied_revision,
        rejected=rejected,
        apply_us=message.apply_micros,
        received_nonce=message.received_nonce,
    )


def report_of(message: pb.Report, now_us: int) -> Report:
    """Return an agent's figures, which came at ``now_us`` (time of day).

    What is wrong with them is left out: for a figure no agent is cut off from its rules.
    """
    known = types.Reason.keys()
    verdicts = {name: count for name, count in message.verdicts.items() if name in known}
    delays = _find_delays(message.commit_to_in_force) if message.HasField("commit_to_in_force") else None
    ahead_us = None
    if message.HasField("time"):
        said_us = message.time.seconds * 1_000_000 + message.time.nanos // 1_000
        ahead_us = max(-CLOCK_AHEAD_MAX_US, min(said_us - now_us, CLOCK_AHEAD_MAX_US))
    return Report(flows=message.flows, denies=message.denies, verdicts=verdicts, commit_to_in_force=delays, clock_ahead_us=ahead_us)


def _find_delays(message: pb.DelayHistogram) -> DelayCounts | None:
    """Return a histogram, None if its buckets are too many, not in order or without counts."""
    bounds, counts = tuple(message.upper_bounds_micros), tuple(message.counts)
    if len(bounds) > DELAY_BOUNDS_MAX or len(counts) != len(bounds) + 1:
        return None
    if any(lower >= upper for lower, upper in pairwise(bounds)):
        return None
    return DelayCounts(bounds_us=bounds, counts=counts, sum_us=message.sum_micros)


def preview_result_of(message: pb.PreviewResult) -> PreviewResult:
    """Return the answer to a preview. InvalidError if it counts more flows than there can be."""
    if message.flows_cut > FLOWS_MAX:
        raise InvalidError("preview_result.flows_cut", f"is {message.flows_cut}, the most allowed is {FLOWS_MAX}")
    problem = message.message[:REASON_CHARACTERS_MAX] or f"code {message.code}"
    return PreviewResult(
        id=message.id, flows_cut=message.flows_cut, revision=message.revision, problem=problem if message.code else ""
    )


def report_message(report: Report) -> pb.Report:
    """Return an agent's figures as they are shown."""
    message = pb.Report(flows=report.flows, denies=report.denies, verdicts=report.verdicts)
    delays = report.commit_to_in_force
    if delays is not None:
        histogram = pb.DelayHistogram(upper_bounds_micros=delays.bounds_us, counts=delays.counts, sum_micros=delays.sum_us)
        message.commit_to_in_force.CopyFrom(histogram)
    return message


def held_back_message(held_back: HeldBack) -> pb.HeldBack:
    """Return a snapshot that is held back as it is shown."""
    return pb.HeldBack(
        revision=held_back.revision,
        servers_removed=held_back.servers_removed,
        servers_held=held_back.servers_held,
        max_removal=held_back.max_removal,
    )


def rejected_message(rejected: Rejected) -> pb.RejectedObject:
    """Return a rejected object as it is shown."""
    kind, key = rejected.key
    version = pb.ObjectVersion(kind=pb.ObjectKind.ValueType(kind), key=key, version=rejected.version)
    return pb.RejectedObject(object=version, code=rejected.code, message=rejected.message)


def _key_of(message: pb.ObjectVersion, field: str) -> ObjectKey:
    if message.kind not in _KINDS:
        raise InvalidError(f"{field}.kind", f"is {message.kind}, which is no kind of object")
    return _KINDS[message.kind], message.key
