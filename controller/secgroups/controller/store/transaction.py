"""A transaction of the SQLite store: the reads and writes of operations as SQL, every write noted for the change log."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

from secgroups.controller.limits import LimitOverrides, Limits
from secgroups.controller.model import (
    Change,
    Group,
    Object,
    ObjectKind,
    Rule,
    Server,
    alters_what_is_allowed,
    groups_with_other_members,
)
from secgroups.controller.store.ids import Ids
from secgroups.controller.store.records import (
    GROUP_COLUMNS,
    LIMIT_COLUMNS,
    SERVER_COLUMNS,
    group_of,
    limit_overrides_of,
    rule_of,
    server_of,
    server_record,
    spec_record,
    to_json,
)
from secgroups.controller.trust.kept import AgentCertificate, AgentRevocation, Token

_INSERT_GROUP = f"INSERT INTO groups ({', '.join(GROUP_COLUMNS)}) VALUES ({', '.join('?' * len(GROUP_COLUMNS))})"  # noqa: S608
_UPDATE_GROUP = "UPDATE groups SET name = ?, description = ?, updated_us = ?, revision = ?, rules_revision = ? WHERE id = ?"
_INSERT_SERVER = f"INSERT INTO servers ({', '.join(SERVER_COLUMNS)}) VALUES ({', '.join('?' * len(SERVER_COLUMNS))})"  # noqa: S608
_UPDATE_SERVER = f"UPDATE servers SET {', '.join(f'{name} = ?' for name in SERVER_COLUMNS)} WHERE project = ? AND id = ?"  # noqa: S608
_COUNT_SERVER = """INSERT INTO projects (project, server_count) VALUES (?, ?)
    ON CONFLICT (project) DO UPDATE SET server_count = server_count + excluded.server_count"""
_PUT_LIMITS = f"INSERT OR REPLACE INTO limit_overrides ({', '.join(LIMIT_COLUMNS)}) VALUES ({', '.join('?' * len(LIMIT_COLUMNS))})"  # noqa: S608
_INSERT_TOKEN = "INSERT INTO tokens (id, name, role, project, created_us, expires_us, hash) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S105
_INSERT_CERTIFICATE = "INSERT INTO certificates (serial, agent_id, issued_us, expires_us, revoked) VALUES (?, ?, ?, ?, ?)"
_PUT_RULE = """INSERT INTO rules (id, project, group_id, spec, identity, remote_group_id, created_us, revision)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET spec = excluded.spec, revision = excluded.revision"""


class SqliteTransaction:
    """One mutation on ``connection``, within a savepoint that its owner keeps."""

    def __init__(self, connection: sqlite3.Connection, ids: Ids, *, limits: Limits, revision: int, now_us: int, actor: str) -> None:
        self._connection = connection
        self._ids = ids
        self._actor = actor
        self._limits = limits
        self.revision = revision
        self.now_us = now_us
        self._changes: dict[tuple[ObjectKind, str], Change] = {}

    @property
    def changes(self) -> tuple[Change, ...]:
        """What it did so far, one change an object: the steps in between are nobody's business."""
        return tuple(change for change in self._changes.values() if change.before is not None or change.after is not None)

    def new_id(self) -> str:
        return self._ids.make(self.now_us)

    def find_group(self, project: str, group_id: str) -> Group | None:
        row = self._one("SELECT * FROM groups WHERE id = ? AND project = ?", group_id, project)
        return group_of(row) if row else None

    def find_group_by_name(self, project: str, name: str) -> Group | None:
        row = self._one("SELECT * FROM groups WHERE project = ? AND name = ?", project, name)
        return group_of(row) if row else None

    def count_groups(self, project: str) -> int:
        return self._count("SELECT count(*) FROM groups WHERE project = ?", project)

    def put_group(self, before: Group | None, after: Group) -> None:
        if before is None:
            self._connection.execute(_INSERT_GROUP, [getattr(after, name) for name in GROUP_COLUMNS])
        else:
            new = (after.name, after.description, after.updated_us, after.revision, after.rules_revision, after.id)
            self._connection.execute(_UPDATE_GROUP, new)
        self._note("group", after.id, before, after)

    def delete_group(self, group: Group) -> None:
        self._connection.execute("DELETE FROM groups WHERE id = ?", [group.id])
        self._note("group", group.id, group, None)

    def find_rule(self, project: str, rule_id: str) -> Rule | None:
        row = self._one("SELECT * FROM rules WHERE id = ? AND project = ?", rule_id, project)
        return rule_of(row) if row else None

    def find_duplicate(self, group_id: str, identity: str) -> Rule | None:
        row = self._one("SELECT * FROM rules WHERE group_id = ? AND identity = ?", group_id, identity)
        return rule_of(row) if row else None

    def rules_of_group(self, group_id: str) -> list[Rule]:
        return [rule_of(row) for row in self._connection.execute("SELECT * FROM rules WHERE group_id = ? ORDER BY id", [group_id])]

    def count_rules(self, group_id: str) -> int:
        return self._count("SELECT count(*) FROM rules WHERE group_id = ?", group_id)

    def rules_naming(self, group_id: str, most: int) -> tuple[list[Rule], int]:
        where = "FROM rules WHERE remote_group_id = ?1 AND group_id <> ?1"
        rows = self._connection.execute(f"SELECT * {where} ORDER BY id LIMIT ?2", (group_id, most))
        rules = [rule_of(row) for row in rows]
        return rules, len(rules) if len(rules) < most else self._count(f"SELECT count(*) {where}", group_id)

    def put_rule(self, before: Rule | None, after: Rule) -> None:
        spec = to_json(spec_record(after.spec))
        key = (after.id, after.project, after.group_id)
        self._connection.execute(
            _PUT_RULE, (*key, spec, after.spec.identity, after.spec.remote_group_id, after.created_us, after.revision)
        )
        self._touch_rules(before, after)
        self._note("rule", after.id, before, after)

    def delete_rule(self, rule: Rule) -> None:
        self._connection.execute("DELETE FROM rules WHERE id = ?", [rule.id])
        self._touch_rules(rule, None)
        self._note("rule", rule.id, rule, None)

    def _touch_rules(self, before: Rule | None, after: Rule | None) -> None:
        rule = after or before
        if rule is None:
            return
        column = ", rules_revision = ?2" if alters_what_is_allowed(before, after) else ""
        query = f"UPDATE groups SET updated_us = ?1, revision = ?2{column} WHERE id = ?3"  # noqa: S608
        self._connection.execute(query, (self.now_us, self.revision, rule.group_id))

    def find_server(self, project: str, server_id: str) -> Server | None:
        row = self._one("SELECT * FROM servers WHERE project = ? AND id = ?", project, server_id)
        if row is None:
            return None
        key = (project, server_id)
        addresses = "SELECT address FROM addresses WHERE project = ? AND server_id = ? ORDER BY position"
        groups = "SELECT group_id FROM attachments WHERE project = ? AND server_id = ? ORDER BY group_id"
        return server_of(row, self._column(addresses, *key), self._column(groups, *key))

    def find_server_of_address(self, project: str, address: str) -> str | None:
        row = self._one("SELECT server_id FROM addresses WHERE project = ? AND address = ?", project, address)
        return str(row[0]) if row else None

    def count_servers(self, project: str) -> int:
        # Counted as they come and go: counting 20,000 takes a millisecond.
        row = self._one("SELECT server_count FROM projects WHERE project = ?", project)
        return int(row[0]) if row else 0

    def _count_server(self, project: str, more: int) -> None:
        self._connection.execute(_COUNT_SERVER, (project, more))

    def servers_of_group(self, group_id: str, most: int) -> tuple[list[str], int]:
        ids = self._column("SELECT server_id FROM attachments WHERE group_id = ? ORDER BY server_id LIMIT ?", group_id, most)
        return ids, len(ids) if len(ids) < most else self._count("SELECT count(*) FROM attachments WHERE group_id = ?", group_id)

    def put_server(self, before: Server | None, after: Server) -> None:
        values = list(server_record(after).values())
        key = (after.project, after.id)
        if before is None:
            self._connection.execute(_INSERT_SERVER, values)
            self._count_server(after.project, 1)
        else:
            self._connection.execute(_UPDATE_SERVER, [*values, *key])
        if before is None or before.addresses != after.addresses:
            self._connection.execute("DELETE FROM addresses WHERE project = ? AND server_id = ?", key)
            rows = [(after.project, str(address), after.id, position) for position, address in enumerate(after.addresses)]
            self._connection.executemany("INSERT INTO addresses (project, address, server_id, position) VALUES (?, ?, ?, ?)", rows)
        old = set(before.group_ids) if before else set()
        gone, come = old - set(after.group_ids), set(after.group_ids) - old
        delete = "DELETE FROM attachments WHERE project = ? AND server_id = ? AND group_id = ?"
        self._connection.executemany(delete, [(*key, group_id) for group_id in gone])
        self._connection.executemany("INSERT INTO attachments VALUES (?, ?, ?)", [(*key, group_id) for group_id in come])
        self._touch_members(before, after)
        self._note("server", after.key, before, after)

    def delete_server(self, server: Server) -> None:
        key = (server.project, server.id)
        for table in ("addresses", "attachments"):
            self._connection.execute(f"DELETE FROM {table} WHERE project = ? AND server_id = ?", key)  # noqa: S608
        self._connection.execute("DELETE FROM servers WHERE project = ? AND id = ?", key)
        self._count_server(server.project, -1)
        self._touch_members(server, None)
        self._note("server", server.key, server, None)

    def limits_of(self, project: str) -> Limits:
        overrides = self.find_limit_overrides(project)
        return self._limits if overrides is None else overrides.over(self._limits)

    def find_limit_overrides(self, project: str) -> LimitOverrides | None:
        row = self._one("SELECT * FROM limit_overrides WHERE project = ?", project)
        return limit_overrides_of(row) if row else None

    def count_limit_overrides(self) -> int:
        return self._count("SELECT count(*) FROM limit_overrides")

    def put_limit_overrides(self, before: LimitOverrides | None, after: LimitOverrides) -> None:
        self._connection.execute(_PUT_LIMITS, [getattr(after, name) for name in LIMIT_COLUMNS])
        self._note("limits", after.project, before, after)

    def delete_limit_overrides(self, overrides: LimitOverrides) -> None:
        self._connection.execute("DELETE FROM limit_overrides WHERE project = ?", [overrides.project])
        self._note("limits", overrides.project, overrides, None)

    def add_token(self, token: Token) -> None:
        values = (token.id, token.name, int(token.role), token.project, token.created_us, token.expires_us, token.hash)
        self._connection.execute(_INSERT_TOKEN, values)
        self._note("token", token.id, None, token)

    def delete_token(self, token: Token) -> None:
        self._connection.execute("DELETE FROM tokens WHERE id = ?", [token.id])
        self._note("token", token.id, token, None)

    def add_certificate(self, certificate: AgentCertificate) -> None:
        values = (certificate.serial, certificate.agent_id, certificate.issued_us, certificate.expires_us, certificate.revoked)
        self._connection.execute(_INSERT_CERTIFICATE, values)
        self._note("certificate", certificate.serial, None, certificate)

    def forget_certificates(self, ended_us: int) -> None:
        self._connection.execute("DELETE FROM certificates WHERE expires_us <= ?", [ended_us])

    def revoke_agent(self, before: AgentRevocation | None, after: AgentRevocation) -> None:
        self._connection.execute("INSERT OR REPLACE INTO revoked_agents VALUES (?, ?)", (after.agent_id, after.revoked_us))
        self._connection.execute("UPDATE certificates SET revoked = 1 WHERE agent_id = ?", [after.agent_id])
        self._note("revocation", after.agent_id, before, after)

    def _touch_members(self, before: Server | None, after: Server | None) -> None:
        rows = [(self.revision, group_id) for group_id in groups_with_other_members(before, after)]
        self._connection.executemany("UPDATE groups SET members_revision = ? WHERE id = ?", rows)

    def _note(self, kind: ObjectKind, key: str, before: Object | None, after: Object | None) -> None:
        change = Change(
            revision=self.revision, kind=kind, key=key, before=before, after=after, at_us=self.now_us, actor=self._actor
        )
        # It keeps the place of the first: what is made stands before what refers to it.
        earlier = self._changes.get((kind, key))
        self._changes[kind, key] = change if earlier is None else replace(change, before=earlier.before)

    def _one(self, query: str, *values: Any) -> Any:
        return self._connection.execute(query, values).fetchone()

    def _count(self, query: str, *values: Any) -> int:
        return int(self._one(query, *values)[0])

    def _column(self, query: str, *values: Any) -> list[str]:
        return [row[0] for row in self._connection.execute(query, values)]
