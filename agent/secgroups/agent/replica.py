"""What this agent was told and has in force: takes the controller's messages and applies each step whole.

No sockets and no clock. The engine holds the objects; here are their versions, the store epoch they belong to, and the step that
is under way. An object that can't be enforced is rejected: its last good version stays, with what that refers to, and the rest of
the step is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import chain
from typing import Protocol, TypeVar

from secgroups.agent import convert
from secgroups.agent.errors import HeldBackError, StreamError, UnenforceableError
from secgroups.agent.firewall import Firewall
from secgroups.agent.held import HeldVersions, Kind, ObjectKey
from secgroups.agent.last_good import needed_by
from secgroups.agent.removal_limit import HeldBack, RemovalLimit
from secgroups.agent.ruleset import AddressSet, AddressSetPatch, GroupRules, Ruleset, RulesetUpdate, ServerBinding
from secgroups.v1 import agent_service_pb2 as pb

# google.rpc.Code of a rejection.
UNIMPLEMENTED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An object that can't be enforced, and why."""

    key: ObjectKey
    version: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A step that is in force: ``objects`` came or went with it, but for those ``rejected``.

    A sync point names all that is rejected, whenever that came: the controller may not have heard of it.
    """

    nonce: int
    revision: int
    objects: int
    rejected: tuple[Rejection, ...]


@dataclass(slots=True)
class _Step:
    """What has come of a step. ``versions`` is what the controller believes we hold when it is done.

    An object may come several times in one step, as it changes while the step is sent: the last of it counts.
    """

    versions: HeldVersions
    sets: dict[str, AddressSet] = field(default_factory=dict)
    patches: dict[str, list[AddressSetPatch]] = field(default_factory=dict)
    groups: dict[str, GroupRules] = field(default_factory=dict)
    servers: dict[str, ServerBinding] = field(default_factory=dict)
    removed: set[ObjectKey] = field(default_factory=set)
    rejected: dict[ObjectKey, Rejection] = field(default_factory=dict)
    touched: set[ObjectKey] = field(default_factory=set)

    def forget(self, key: ObjectKey) -> None:
        """Drop what came of an object before: something else came of it."""
        kind, name = key
        self.touched.add(key)
        self.removed.discard(key)
        self.rejected.pop(key, None)
        if kind is Kind.SET:
            self.sets.pop(name, None)
            self.patches.pop(name, None)
        else:
            (self.groups if kind is Kind.GROUP else self.servers).pop(name, None)

    def reject(self, key: ObjectKey, version: int, message: str) -> None:
        """Note that an object can't be enforced as it came. Its last good version stays."""
        self.forget(key)
        self.rejected[key] = Rejection(key=key, version=version, message=message)


class _Object(Protocol):
    @property
    def version(self) -> int: ...


MessageT = TypeVar("MessageT", bound=_Object)
ValueT = TypeVar("ValueT")


class Replica:
    """The agent's side of the stream's state.

    ``revision``, ``store_epoch`` and ``timeline_id`` are of what is in force; 0 and "" if nothing is.
    ``held_back`` is the latest snapshot that ``removal_limit`` did not let pass, until the agent is in sync again.
    ``taken`` is how many objects and rules in them have come since the start, those that are gone again too.
    """

    def __init__(self, firewall: Firewall, removal_limit: RemovalLimit | None = None) -> None:
        self.held_back: HeldBack | None = None
        self.taken = 0
        self._firewall = firewall
        self._removal_limit = removal_limit or RemovalLimit()
        self.store_epoch = ""
        self.timeline_id = ""
        self.revision = 0
        self.from_cache = False
        self._trusted = True
        self._held = HeldVersions()
        self._rejected: dict[ObjectKey, Rejection] = {}
        # What the controller took away and a last good version still needs: it is in force, and not among what is held.
        self._outliving: set[ObjectKey] = set()
        self._step: _Step | None = None
        self._snapshot_epoch: str | None = None
        self._stream_timeline_id = ""
        self._nonce = 0

    @property
    def ruleset(self) -> Ruleset:
        """What is in force."""
        return self._firewall.ruleset

    @property
    def held(self) -> HeldVersions:
        """The versions of all that was told, rejected ones too."""
        return self._held

    @property
    def rejected_count(self) -> int:
        """How many objects can't be enforced in the version that was told."""
        return len(self._rejected)

    @property
    def resume_epoch(self) -> str:
        """The store epoch to go on from; empty if there is nothing that can be trusted."""
        return self.store_epoch if self._trusted else ""

    def restore(self, ruleset: Ruleset, store_epoch: str, now_ns: int, *, timeline_id: str = "") -> None:
        """Enforce what was in force when it was saved."""
        update = RulesetUpdate(
            revision=ruleset.revision,
            snapshot=True,
            sets=tuple(ruleset.sets.values()),
            groups=tuple(ruleset.groups.values()),
            servers=tuple(ruleset.servers.values()),
        )
        self._put_in_force(update, now_ns)
        self._held = held_in(ruleset)
        self.store_epoch, self.timeline_id = store_epoch, timeline_id
        self.revision, self.from_cache = ruleset.revision, True
        self._firewall.mark(mark_of(store_epoch, timeline_id, self._held))

    def distrust(self) -> None:
        """Ask for a full state at the next welcome. What is in force stays until that has come whole."""
        self._trusted = False

    def welcome(self, message: pb.Welcome) -> None:
        """Begin a stream. StreamError if it would go on from something that is not held."""
        self._step, self._nonce, self._snapshot_epoch = None, 0, None
        if message.mode == pb.SYNC_MODE_SNAPSHOT:
            self._snapshot_epoch = message.store_epoch
        elif message.mode not in (pb.SYNC_MODE_RESUMED, pb.SYNC_MODE_DIFFERENCE) or not self.resume_epoch:
            raise StreamError(f"welcome with sync mode {message.mode}, which does not fit what is held")
        elif message.store_epoch != self.store_epoch:
            raise StreamError(f"welcome of store epoch {message.store_epoch}, held is {self.store_epoch}")
        self._stream_timeline_id = message.timeline_id

    def update(self, message: pb.Update, now_ns: int) -> Applied | None:
        """Take an update; return what is in force if it ends a step. StreamError or BaseVersionError if it does not fit."""
        self._expect(message.nonce)
        step = self._step = self._step or self._new_step()
        for made in message.sets:
            self._take(step, (Kind.SET, made.group_id), made, convert.address_set, step.sets)
        for patch in message.set_patches:
            self._patch(step, patch)
        for group in message.groups:
            self._take(step, (Kind.GROUP, group.group_id), group, convert.group_rules, step.groups)
        for server in message.servers:
            self._take(step, (Kind.SERVER, server.server), server, convert.server_binding, step.servers)
        self._remove(step, Kind.SERVER, message.removed_servers)
        self._remove(step, Kind.GROUP, message.removed_groups)
        self._remove(step, Kind.SET, message.removed_sets)
        if message.more or self._snapshot_epoch is not None:
            return None
        return self._apply(step, message.nonce, message.revision, now_ns)

    def sync_point(self, message: pb.SyncPoint, now_ns: int) -> Applied:
        """Take a sync point, which ends the step that is under way; return what is in force then. If it raises nothing was applied.

        StreamError if the digests differ, HeldBackError if a snapshot would remove too many servers.
        """
        self._expect(message.nonce)
        ends_snapshot = self._snapshot_epoch is not None
        if message.snapshot_end != ends_snapshot:
            raise StreamError("sync point that ends a snapshot where there is none, or does not end the one that there is")
        step = self._step or self._new_step()
        if message.state_digest != step.versions.digest:
            raise StreamError(f"state digest at revision {message.revision} is not that of what was told")
        if ends_snapshot:
            self._check_removal(step, message.revision)
        if ends_snapshot or self._step is not None:
            applied = self._apply(step, message.nonce, message.revision, now_ns)
        else:
            self._reach(message.revision)
            applied = Applied(nonce=message.nonce, revision=message.revision, objects=0, rejected=())
        self.held_back = None
        return replace(applied, rejected=tuple(self._rejected.values()))

    def bookmark(self, message: pb.Bookmark) -> None:
        """Take note that nothing has changed up to a revision."""
        if self._step is None and self._snapshot_epoch is None:
            self._reach(message.revision)

    def _reach(self, revision: int) -> None:
        """Note that what is in force is the state of a revision, by what the controller of this stream says."""
        self.revision, self.timeline_id, self.from_cache = revision, self._stream_timeline_id, False

    def _check_removal(self, step: _Step, revision: int) -> None:
        """Look at what would be left of the servers in force. HeldBackError if that is too little; the step is then forgotten."""
        held = self.ruleset.servers.keys()
        kept = self._last_good(step).servers.keys() | step.servers.keys()
        removed = len(held - kept)
        if not self._removal_limit.exceeded(removed=removed, held=len(held)):
            return
        self.held_back = HeldBack(
            store_epoch=self._snapshot_epoch or "",
            revision=revision,
            servers_removed=removed,
            servers_held=len(held),
            max_removal=self._removal_limit.max_removal,
        )
        self._step = None
        raise HeldBackError(str(self.held_back))

    def _expect(self, nonce: int) -> None:
        if nonce != self._nonce + 1:
            raise StreamError(f"message {nonce} after {self._nonce}")
        self._nonce = nonce

    def _new_step(self) -> _Step:
        return _Step(HeldVersions() if self._snapshot_epoch is not None else self._held.copy())

    @staticmethod
    def _take(
        step: _Step, key: ObjectKey, message: MessageT, made_of: Callable[[MessageT], ValueT], values: dict[str, ValueT]
    ) -> None:
        step.versions.put(key, message.version)
        try:
            made = made_of(message)
        except UnenforceableError as error:
            step.reject(key, message.version, str(error))
            return
        step.forget(key)
        values[key[1]] = made

    @staticmethod
    def _patch(step: _Step, message: pb.AddressSetPatch) -> None:
        key = (Kind.SET, message.group_id)
        if key in step.removed:
            raise StreamError(f"patch of set {message.group_id}, which was removed in the same step")
        step.versions.put(key, message.version)
        if key in step.rejected:
            # A large set comes in parts, and may change while it comes: rejected in part it is rejected whole.
            step.reject(key, message.version, step.rejected[key].message)
            return
        try:
            made = convert.address_set_patch(message)
        except UnenforceableError as error:
            step.reject(key, message.version, str(error))
            return
        step.touched.add(key)
        step.patches.setdefault(message.group_id, []).append(made)

    @staticmethod
    def _remove(step: _Step, kind: Kind, names: Sequence[str]) -> None:
        for name in names:
            step.forget((kind, name))
            step.versions.drop((kind, name))
            step.removed.add((kind, name))

    def _apply(self, step: _Step, nonce: int, revision: int, now_ns: int) -> Applied:
        snapshot_epoch = self._snapshot_epoch
        objects = len(step.touched)
        if snapshot_epoch is not None:
            # What a snapshot does not mention goes.
            objects += sum(key not in step.versions and key not in step.touched for key, _ in self._held)
        rejected = self._rejected_after(step)
        update, outliving = self._ruleset_update(step, revision, rejected)
        self._put_in_force(update, now_ns)
        self._step, self._snapshot_epoch = None, None
        self._held, self._rejected, self._outliving = step.versions, rejected, outliving
        self._reach(revision)
        if snapshot_epoch is not None:
            self.store_epoch, self._trusted = snapshot_epoch, True
        self._firewall.mark(mark_of(self.store_epoch, self.timeline_id, self._held))
        return Applied(nonce=nonce, revision=revision, objects=objects, rejected=tuple(step.rejected.values()))

    def _put_in_force(self, update: RulesetUpdate, now_ns: int) -> None:
        self._firewall.apply(update, now_ns)
        self.taken += len(update.sets) + len(update.set_patches) + len(update.groups) + len(update.servers)
        self.taken += sum(len(group.rules) for group in update.groups)

    def _rejected_after(self, step: _Step) -> dict[ObjectKey, Rejection]:
        if self._snapshot_epoch is not None:
            return step.rejected
        return {key: old for key, old in self._rejected.items() if key not in step.touched} | step.rejected

    def _ruleset_update(
        self, step: _Step, revision: int, rejected: dict[ObjectKey, Rejection]
    ) -> tuple[RulesetUpdate, set[ObjectKey]]:
        """Return the step as the engine takes it, and what stays in force though the controller has taken it away."""
        kept = self._last_good(step)
        gone = step.removed | self._outliving
        outliving: set[ObjectKey] = set()
        if self._snapshot_epoch is not None:
            outliving = {(Kind.GROUP, name) for name in kept.groups} | {(Kind.SET, name) for name in kept.sets}
        elif rejected and gone:
            held = self.ruleset
            outliving = gone & needed_by(rejected, held.servers, {**held.groups, **step.groups})
        outliving = {key for key in outliving if key not in step.versions}
        gone = {key for key in gone - outliving if key not in step.versions}
        update = RulesetUpdate(
            revision=revision,
            snapshot=self._snapshot_epoch is not None,
            sets=(*kept.sets.values(), *step.sets.values()),
            set_patches=tuple(chain.from_iterable(step.patches.values())),
            groups=(*kept.groups.values(), *step.groups.values()),
            servers=(*kept.servers.values(), *step.servers.values()),
            removed_servers=tuple(name for kind, name in gone if kind is Kind.SERVER),
            removed_groups=tuple(name for kind, name in gone if kind is Kind.GROUP),
            removed_sets=tuple(name for kind, name in gone if kind is Kind.SET),
        )
        return update, outliving

    def _last_good(self, step: _Step) -> Ruleset:
        """Return what a snapshot must not remove: the good versions of what it holds in a form that can't be enforced.

        With them comes what they refer to and it does not bring.
        """
        if self._snapshot_epoch is None or self._snapshot_epoch != self.store_epoch or not step.rejected:
            return Ruleset()
        held = self.ruleset
        needed = needed_by(step.rejected, held.servers, {**held.groups, **step.groups})
        names = {kind: {name for of, name in needed | step.rejected.keys() if of is kind} for kind in Kind}
        return Ruleset(
            sets={name: held.sets[name] for name in names[Kind.SET] - step.sets.keys() if name in held.sets},
            groups={name: held.groups[name] for name in names[Kind.GROUP] - step.groups.keys() if name in held.groups},
            servers={name: held.servers[name] for name in names[Kind.SERVER] if name in held.servers},
        )


def mark_of(store_epoch: str, timeline_id: str, held: HeldVersions) -> bytes:
    """Return 32 bytes that stand for a state of a store: versions alone are the same in copies of it that went different ways."""
    return sha256(f"{store_epoch} {timeline_id} {held.digest!r}".encode()).digest()


def held_in(ruleset: Ruleset) -> HeldVersions:
    """Return the versions of all that is in ``ruleset``."""
    return HeldVersions(_versions(ruleset))


def _versions(ruleset: Ruleset) -> dict[ObjectKey, int]:
    versions: dict[ObjectKey, int] = {(Kind.SET, name): held.version for name, held in ruleset.sets.items()}
    versions |= {(Kind.GROUP, name): held.version for name, held in ruleset.groups.items()}
    versions |= {(Kind.SERVER, name): held.version for name, held in ruleset.servers.items()}
    return versions
