"""Everything that a file holds, read at the start: one pass over each table.

Every object is checked as if it were new, and so is what it refers to, for a file can be edited by hand. What repeats is made once
and shared: specs and prefixes of rules, ids, names of projects and agents, the groups that many servers have in common.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from secgroups.controller.errors import RequestError
from secgroups.controller.limits import LimitOverrides
from secgroups.controller.model import Group, Rule, RuleSpec, Server
from secgroups.controller.store.interface import Contents
from secgroups.controller.store.records import (
    GROUP_COLUMNS,
    LIMIT_COLUMNS,
    SERVER_COLUMNS,
    address_of,
    names_of,
    read_spec,
)
from secgroups.controller.trust.kept import AgentCertificate, AgentRevocation, KeptCredentials, Token
from secgroups.controller.trust.principals import Role

V = TypeVar("V")

_GROUPS = f"SELECT {', '.join(GROUP_COLUMNS)} FROM groups ORDER BY id"  # noqa: S608
# In the order in which they lie in the file: by their keys, each row of these would be looked up in another place.
_RULES = "SELECT id, project, group_id, spec, remote_group_id, created_us, revision FROM rules ORDER BY rowid"
_SERVERS = f"SELECT {', '.join(SERVER_COLUMNS)} FROM servers ORDER BY rowid"  # noqa: S608
_ADDRESSES = "SELECT project, server_id, address FROM addresses ORDER BY project, server_id, position"
_ATTACHMENTS = "SELECT project, server_id, group_id FROM attachments ORDER BY project, server_id, group_id"

_LIMITS = f"SELECT {', '.join(LIMIT_COLUMNS)} FROM limit_overrides ORDER BY project"  # noqa: S608
_TOKENS = "SELECT id, name, role, project, created_us, expires_us, hash FROM tokens ORDER BY id"
_CERTIFICATES = "SELECT serial, agent_id, issued_us, expires_us, revoked FROM certificates ORDER BY serial"
_REVOCATIONS = "SELECT agent_id, revoked_us FROM revoked_agents ORDER BY agent_id"


def load(connection: sqlite3.Connection, revision: int) -> Contents:
    """Return everything, as of ``revision``. ValueError that names the row if one is not valid; errors of SQLite as they come."""
    return _Loading(connection).contents(revision)


class _GroupIds(dict[str, str]):
    """The one string of each group's id. ValueError for a group that is not there: SQLite's shell does not guard references."""

    def __missing__(self, group_id: str) -> str:
        raise ValueError(f"group {group_id} is gone")


class _Loading:
    """One reading of a file. What is shared is forgotten with it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # Called with a value twice it returns the first that was equal: SQLite makes a new string for every column of every row.
        self._share: Callable[[Any, Any], Any] = {}.setdefault
        self._group_ids = _GroupIds()
        self._specs: dict[str, RuleSpec] = {}

    def contents(self, revision: int) -> Contents:
        groups = self._each("groups", _GROUPS, self._group)
        self._group_ids.update((group.id, group.id) for group in groups)
        rules = self._each("rules", _RULES, self._rule)
        self._specs.clear()
        self._addresses = self._lists(_ADDRESSES)
        self._attached = self._lists(_ATTACHMENTS)
        servers = self._each("servers", _SERVERS, self._server)
        for table, left in (("addresses", self._addresses), ("attachments", self._attached)):
            for project, by_server in left.items():
                for server_id in by_server:
                    raise ValueError(f"{table}: server {project}/{server_id} is gone")
        limits = self._each("limit_overrides", _LIMITS, self._limit_overrides)
        return Contents(
            revision=revision,
            groups=groups,
            rules=rules,
            servers=servers,
            limit_overrides=limits,
            credentials=self._credentials(),
        )

    def _rows(self, query: str) -> sqlite3.Cursor:
        cursor = self._connection.cursor()
        # Plain tuples: they are unpacked in order, which takes a third of the time of columns by name.
        cursor.row_factory = None
        return cursor.execute(query)

    def _each(self, table: str, query: str, make: Callable[..., V]) -> list[V]:
        made = []
        for row in self._rows(query):
            try:
                made.append(make(*row))
            except (RequestError, LookupError, ValueError, TypeError) as error:
                key = row[0] if table != "servers" else f"{row[0]}/{row[1]}"
                raise ValueError(f"{table}: {key}: {error}") from None
        return made

    def _lists(self, query: str) -> dict[str, dict[str, list[str]]]:
        """Return a column of what servers have several of, by project and server. Rows of a project follow one another."""
        found: dict[str, dict[str, list[str]]] = {}
        last, by_server = None, defaultdict[str, list[str]](list)
        for project, server_id, value in self._rows(query):
            if project != last:
                last, by_server = project, defaultdict(list)
                found[project] = by_server
            by_server[server_id].append(value)
        return found

    def _credentials(self) -> KeptCredentials:
        return KeptCredentials(
            tokens=list(self._each("tokens", _TOKENS, self._token)),
            certificates=list(self._each("certificates", _CERTIFICATES, self._certificate)),
            revocations=list(self._each("revoked_agents", _REVOCATIONS, self._revocation)),
        )

    @staticmethod
    def _token(id_: str, name: str, role: int, project: str, *values: Any) -> Token:
        created_us, expires_us, hash_ = values
        return Token(id=id_, name=name, role=Role(role), project=project, created_us=created_us, expires_us=expires_us, hash=hash_)

    def _certificate(self, serial: str, agent_id: str, issued_us: int, expires_us: int, revoked: int) -> AgentCertificate:
        return AgentCertificate(
            serial=serial,
            agent_id=self._share(agent_id, agent_id),
            issued_us=issued_us,
            expires_us=expires_us,
            revoked=bool(revoked),
        )

    @staticmethod
    def _revocation(agent_id: str, revoked_us: int) -> AgentRevocation:
        return AgentRevocation(agent_id=agent_id, revoked_us=revoked_us)

    def _limit_overrides(self, *values: Any) -> LimitOverrides:
        return LimitOverrides(**dict(zip(LIMIT_COLUMNS, values, strict=True)))

    def _group(self, id_: str, project: str, name: str, description: str, *values: int) -> Group:
        share = self._share
        created_us, updated_us, revision, rules_revision, members_revision = values
        return Group(
            id=id_,
            project=share(project, project),
            name=name,
            description=share(description, description),
            created_us=created_us,
            updated_us=updated_us,
            revision=revision,
            rules_revision=rules_revision,
            members_revision=members_revision,
        )

    def _rule(self, id_: str, project: str, group_id: str, text: str, remote: str | None, created_us: int, revision: int) -> Rule:
        share = self._share
        spec = self._specs.get(text)
        if spec is None:
            spec = self._specs[text] = read_spec(text)
        if spec.remote_group_id != remote:
            # SQLite guards the column, and only with it what the spec refers to.
            raise ValueError(f"its spec names group {spec.remote_group_id} as remote, its row names {remote}")
        if remote is not None:
            self._group_ids[remote]
        return Rule(
            id=id_,
            project=share(project, project),
            group_id=self._group_ids[group_id],
            spec=spec,
            created_us=created_us,
            revision=revision,
        )

    def _server(self, project: str, id_: str, name: str, agent_id: str, *values: Any) -> Server:
        share = self._share
        created_us, updated_us, revision, binding_revision, previous_agent_text, moved_revision = values
        previous_agent_ids = names_of(previous_agent_text)
        ids = self._group_ids
        group_ids = tuple([ids[group_id] for group_id in self._attached.get(project, {}).pop(id_, ())])
        return Server(
            project=share(project, project),
            id=id_,
            name=name,
            addresses=tuple([address_of(text) for text in self._addresses.get(project, {}).pop(id_, ())]),
            agent_id=share(agent_id, agent_id),
            group_ids=share(group_ids, group_ids),
            created_us=created_us,
            updated_us=updated_us,
            revision=revision,
            binding_revision=binding_revision,
            previous_agent_ids=share(previous_agent_ids, previous_agent_ids),
            moved_revision=moved_revision,
        )
