"""What controller and agent say to each other on the stream, as plain values: ``secgroups.v1.AgentService`` without protobuf.

Objects are immutable and shared by all streams. Times are microseconds since the Unix epoch (``_us``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from secgroups.controller.delays import DelayCounts
from secgroups.controller.model import Rule


class Kind(IntEnum):
    """The kinds of object that an agent holds. The numbers are those of ``secgroups.v1.ObjectKind``."""

    SERVER = 1
    GROUP = 2
    SET = 3

    @property
    def word(self) -> str:
        """The name of the kind in digests and in messages for people."""
        return self.name.lower()


# A kind and the key within it: "project/id" for a server, the group's id for the others.
ObjectKey = tuple[Kind, str]


class SyncMode(IntEnum):
    """How an agent is brought up to date. The numbers are those of ``secgroups.v1.SyncMode``."""

    RESUMED = 1
    DIFFERENCE = 2
    SNAPSHOT = 3


# Wire size of an object with everything but its lists, and of each entry of these; on the safe side, to cut chunks by.
OBJECT_BYTES = 200
_RULE_BYTES = 200
_ID_BYTES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBinding:
    """A guarded server. ``ipv4`` and ``ipv6`` are packed in network order, ascending."""

    server: str
    version: int
    ipv4: bytes
    ipv6: bytes
    group_ids: tuple[str, ...]

    @property
    def key(self) -> ObjectKey:
        return Kind.SERVER, self.server

    @property
    def size_bytes(self) -> int:
        return OBJECT_BYTES + 4 * len(self.server) + len(self.ipv4) + len(self.ipv6) + _ID_BYTES * len(self.group_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRules:
    """The rules of a group, in ascending order of id."""

    group_id: str
    version: int
    name: str
    rules: tuple[Rule, ...]

    @property
    def key(self) -> ObjectKey:
        return Kind.GROUP, self.group_id

    @property
    def size_bytes(self) -> int:
        return OBJECT_BYTES + 4 * len(self.name) + _RULE_BYTES * len(self.rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSet:
    """The addresses of a group's members, packed in network order, ascending."""

    group_id: str
    version: int
    ipv4: bytes
    ipv6: bytes

    @property
    def key(self) -> ObjectKey:
        return Kind.SET, self.group_id

    @property
    def size_bytes(self) -> int:
        return OBJECT_BYTES + len(self.ipv4) + len(self.ipv6)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSetPatch:
    """Turns the set at ``base_version`` into the one at ``version``."""

    group_id: str
    base_version: int
    version: int
    added_ipv4: bytes = b""
    added_ipv6: bytes = b""
    removed_ipv4: bytes = b""
    removed_ipv6: bytes = b""

    @property
    def key(self) -> ObjectKey:
        return Kind.SET, self.group_id

    @property
    def size_bytes(self) -> int:
        return OBJECT_BYTES + len(self.added_ipv4) + len(self.added_ipv6) + len(self.removed_ipv4) + len(self.removed_ipv6)


StreamObject = ServerBinding | GroupRules | AddressSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The controller accepts the stream."""

    store_epoch: str
    timeline_id: str
    revision: int
    mode: SyncMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """New state, applied whole with what came before it when ``more`` is false, or with the sync point that follows.

    ``oldest_commit_us`` is 0 in a snapshot and where it is not known.
    """

    nonce: int
    revision: int
    more: bool
    sets: tuple[AddressSet, ...] = ()
    set_patches: tuple[AddressSetPatch, ...] = ()
    groups: tuple[GroupRules, ...] = ()
    servers: tuple[ServerBinding, ...] = ()
    removed_servers: tuple[str, ...] = ()
    removed_groups: tuple[str, ...] = ()
    removed_sets: tuple[str, ...] = ()
    oldest_commit_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPoint:
    """Everything up to a revision has been sent. Ends the step that is under way, if there is one."""

    nonce: int
    revision: int
    state_digest: bytes
    snapshot_end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """Nothing concerns this agent up to a revision."""

    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoAway:
    """The controller ends the stream; connect again no sooner than ``reconnect_after_s``."""

    reason: str
    reconnect_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRequest:
    """Asks what ``update`` would cut; nobody waits for the answer longer than ``timeout_s``."""

    id: int
    update: Update
    timeout_s: float


Outbound = Welcome | Update | SyncPoint | Bookmark | GoAway | PreviewRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """A snapshot that an agent did not apply: it would remove more than the share ``max_removal`` of its ``servers_held``."""

    revision: int
    servers_removed: int
    servers_held: int
    max_removal: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who the agent is and what it holds. A window of 0 leaves it to the controller."""

    agent_id: str
    boot_id: str
    boot_time_us: int = 0
    version: str = ""
    host: str = ""
    store_epoch: str = ""
    timeline_id: str = ""
    applied_revision: int = 0
    held: Mapping[ObjectKey, int] = field(default_factory=dict)
    state_digest: bytes = b""
    window_messages: int = 0
    window_bytes: int = 0
    held_back: HeldBack | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An object that an agent can't enforce. ``code`` is a google.rpc.Code, never OK."""

    key: ObjectKey
    version: int
    code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """What was sent up to and with ``nonce`` is in force, and up to and with ``received_nonce`` arrived.

    Both 0: it acknowledges a bookmark. ``nonce`` alone 0: a receipt, which says nothing of what is in force.
    """

    nonce: int
    applied_revision: int
    rejected: tuple[Rejected, ...] = ()
    apply_us: int = 0
    received_nonce: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Figures of an agent. ``verdicts`` counts by the name of the reason; ``commit_to_in_force`` is by the agent's clock.

    ``clock_ahead_us`` is by how much that was ahead of the controller's when the report came; None if it is not said.
    """

    flows: int
    denies: int
    verdicts: Mapping[str, int]
    commit_to_in_force: DelayCounts | None = None
    clock_ahead_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewResult:
    """How many live flows an update would cut, counted at ``revision``; if ``problem`` is not empty they were not counted."""

    id: int
    flows_cut: int
    revision: int
    problem: str = ""
