"""What operations ask of a store, what the core asks of it, and what a commit answers. SQL stays behind this.

Look-ups of a transaction go to the store by index and never to a memory of it, and changes are handed on by revision: several
controllers on one store could work the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from secgroups.controller.limits import LimitOverrides, Limits
from secgroups.controller.model import Change, Group, ObjectKind, Rule, Server
from secgroups.controller.trust.kept import AgentCertificate, AgentRevocation, KeptCredentials, Token

T = TypeVar("T")


class Transaction(Protocol):
    """One mutation in the making: what it reads is current, what it writes becomes durable with ``revision`` or not at all."""

    @property
    def revision(self) -> int:
        """The revision that this mutation gets if it changes anything."""

    @property
    def now_us(self) -> int: ...

    def new_id(self) -> str:
        """Return a UUIDv7 that is above all ids made before in this store."""

    def find_group(self, project: str, group_id: str) -> Group | None: ...

    def find_group_by_name(self, project: str, name: str) -> Group | None: ...

    def count_groups(self, project: str) -> int: ...

    def put_group(self, before: Group | None, after: Group) -> None:
        """Insert (``before`` is None) or overwrite a group."""

    def delete_group(self, group: Group) -> None:
        """Delete a group that nothing refers to any more."""

    def find_rule(self, project: str, rule_id: str) -> Rule | None: ...

    def find_duplicate(self, group_id: str, identity: str) -> Rule | None:
        """Return the rule of the group that allows exactly the same."""

    def rules_of_group(self, group_id: str) -> list[Rule]:
        """Return a group's rules in ascending order of id."""

    def count_rules(self, group_id: str) -> int: ...

    def rules_naming(self, group_id: str, most: int) -> tuple[list[Rule], int]:
        """Return at most ``most`` rules of other groups that name the group as remote, ascending by id, and how many there are."""

    def put_rule(self, before: Rule | None, after: Rule) -> None: ...

    def delete_rule(self, rule: Rule) -> None: ...

    def find_server(self, project: str, server_id: str) -> Server | None: ...

    def find_server_of_address(self, project: str, address: str) -> str | None:
        """Return the id of the server that has an address."""

    def count_servers(self, project: str) -> int: ...

    def servers_of_group(self, group_id: str, most: int) -> tuple[list[str], int]:
        """Return, in ascending order, the ids of at most ``most`` attached servers, and how many there are."""

    def put_server(self, before: Server | None, after: Server) -> None: ...

    def delete_server(self, server: Server) -> None: ...

    def limits_of(self, project: str) -> Limits:
        """Return what counts for a project: its overrides, and the controller's defaults for the rest."""

    def find_limit_overrides(self, project: str) -> LimitOverrides | None: ...

    def count_limit_overrides(self) -> int:
        """Return how many projects have any."""

    def put_limit_overrides(self, before: LimitOverrides | None, after: LimitOverrides) -> None: ...

    def delete_limit_overrides(self, overrides: LimitOverrides) -> None: ...

    def add_token(self, token: Token) -> None: ...

    def delete_token(self, token: Token) -> None: ...

    def add_certificate(self, certificate: AgentCertificate) -> None: ...

    def forget_certificates(self, ended_us: int) -> None:
        """Forget those that ended at a time or before. That is no change."""

    def revoke_agent(self, before: AgentRevocation | None, after: AgentRevocation) -> None:
        """Revoke all certificates of an agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """Marks a request that may be repeated: the same key and fingerprint within an hour get the same answer."""

    project: str
    method: str
    request_id: str
    fingerprint: bytes


@dataclass(slots=True)
class Pending(Generic[T]):
    """A mutation that waits for its commit.

    ``encode(value, revision)`` makes the answer that is kept for repeats of ``request``; without it, or with ``validate_only``,
    none is kept. ``validate_only`` runs the operation and takes it back.
    """

    operation: Callable[[Transaction], T]
    validate_only: bool = False
    request: RequestKey | None = None
    encode: Callable[[T, int], bytes] | None = None
    actor: str = ""


@dataclass(slots=True, kw_only=True)
class Committed(Generic[T]):
    """What became of a mutation: its value or, for a repeat, the answer given before (``value`` is None then).

    ``revision`` is the present one if nothing changed. With ``validate_only`` the ``changes`` are what would have been.
    """

    value: T | None
    revision: int
    changes: Sequence[Change] = ()
    replayed: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Everything that a store holds, at ``revision``."""

    revision: int
    groups: list[Group] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    limit_overrides: list[LimitOverrides] = field(default_factory=list)
    credentials: KeptCredentials = field(default_factory=KeptCredentials)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePage:
    """Whole revisions of the change log, in order, up to and with ``revision``: the store's own if there is no more.

    ``gap``: some of what was asked for is forgotten. Then there are no changes and only ``load`` will do.
    """

    changes: Sequence[Change]
    revision: int
    gap: bool = False


# A revision, and the number of a change within it.
Place = tuple[int, int]


class Lineage(Protocol):
    """What a store knows of its own past, to be asked from any thread.

    ``store_epoch`` is a UUID made with the store: revisions of different epochs have nothing to do with one another.
    ``timeline_id`` is a UUID of this opening of it, empty before ``begin_timeline``. Of what happened up to and with
    ``compacted_revision`` the change log tells nothing any more.
    """

    @property
    def store_epoch(self) -> str: ...

    @property
    def timeline_id(self) -> str: ...

    @property
    def compacted_revision(self) -> int: ...

    def covers(self, timeline_id: str, revision: int) -> bool:
        """Whether a revision that was told under a timeline is one of this store: the same changes led to it."""


class Store(Lineage, Protocol):
    """Keeps groups, rules, servers, limits of projects, tokens and what was issued to agents.

    One thread at a time, but for ``Lineage`` and the change log: these at any time. ``revision`` is that of the last commit.
    """

    @property
    def revision(self) -> int: ...

    def load(self) -> Contents:
        """Return everything that is kept."""

    def begin_timeline(self) -> None:
        """Begin the timeline of this opening, once, when what is kept was found good and before anything is committed.

        StoreFileError if that can't be written.
        """

    def commit(self, batch: Sequence[Pending[Any]]) -> list[Committed[Any] | Exception]:
        """Run every mutation of ``batch`` in order and commit once; return what became of each, in order.

        One that raises undoes only itself, and its exception is its result. If the commit fails, nothing was changed and every
        result is a StoreUnavailableError.
        """

    def changes_since(self, revision: int, limit: int = 1_000) -> ChangePage:
        """Return what happened after ``revision``: about ``limit`` changes, but whole revisions and at least one."""

    def changes_before(
        self, project: str, before: Place | None, limit: int, without: Collection[ObjectKind] = ()
    ) -> list[tuple[Change, Place]]:
        """Return the latest changes before a place in the log, None for its end, the newest first, each with its place.

        Of one project, or of all if that is empty; those of some kinds of object may be left out.
        """

    def changes_of(self, key: str, limit: int) -> list[Change]:
        """Return the latest changes of the objects with a key, the newest first."""

    def close(self) -> None:
        """Let go of the store. Closing twice does no harm."""
