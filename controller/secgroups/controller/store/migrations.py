"""The schema, step by step. A step that has been released is never edited; a new one is added."""

from __future__ import annotations

import uuid

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

MIGRATIONS = Migrations("secgroups")


@MIGRATIONS()
def m001_objects(db: Database) -> None:
    """Objects, the change log, the revision counter and the answers kept for repeated requests."""
    for statement in _OBJECTS.split(";"):
        if statement.strip():
            db.execute(statement)
    for key, value in (("revision", "0"), ("compacted_revision", "0"), ("last_id", ""), ("store_epoch", str(uuid.uuid4()))):
        db.execute("INSERT INTO meta (key, value) VALUES (?, ?)", [key, value])


@MIGRATIONS()
def m002_timelines(db: Database) -> None:
    """The openings of the file: ``number`` counts them, ``began_revision`` is the revision that each found."""
    db.execute(
        "CREATE TABLE timelines (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, began_revision INTEGER NOT NULL) STRICT"
    )


@MIGRATIONS()
def m003_previous_agents(db: Database) -> None:
    """All agents that may hold a server on its way, not only the last: ids with a slash between them, which no id has."""
    db.execute("ALTER TABLE servers RENAME COLUMN previous_agent_id TO previous_agent_ids")


@MIGRATIONS()
def m004_credentials(db: Database) -> None:
    """Tokens, of which a hash is kept, and the certificates that were issued to agents. Roles: 1 viewer, 2 editor, 3 admin."""
    db.execute(
        """CREATE TABLE tokens (
            id TEXT PRIMARY KEY, name TEXT NOT NULL, role INTEGER NOT NULL, project TEXT NOT NULL,
            created_us INTEGER NOT NULL, expires_us INTEGER, hash BLOB NOT NULL
        ) STRICT, WITHOUT ROWID"""
    )
    db.execute(
        """CREATE TABLE certificates (
            serial TEXT PRIMARY KEY, agent_id TEXT NOT NULL, issued_us INTEGER NOT NULL, expires_us INTEGER NOT NULL,
            revoked INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID"""
    )


@MIGRATIONS()
def m005_trails(db: Database) -> None:
    """The change log is asked by project, and by object."""
    db.execute("CREATE INDEX changes_by_project ON changes (project, revision, seq)")
    db.execute("CREATE INDEX changes_by_key ON changes (key, revision)")


@MIGRATIONS()
def m006_revoked_agents(db: Database) -> None:
    """Since when no earlier certificate of an agent counts: also one that is not known, as after a backup was put back."""
    db.execute("CREATE TABLE revoked_agents (agent_id TEXT PRIMARY KEY, revoked_us INTEGER NOT NULL) STRICT, WITHOUT ROWID")


@MIGRATIONS()
def m007_limit_overrides(db: Database) -> None:
    """Limits that an admin has set for a project, in place of the controller's; NULL: the controller's counts."""
    db.execute(
        """CREATE TABLE limit_overrides (
            project TEXT PRIMARY KEY, updated_us INTEGER NOT NULL, revision INTEGER NOT NULL,
            groups_per_project INTEGER, rules_per_group INTEGER, groups_per_server INTEGER, servers_per_project INTEGER,
            addresses_per_server INTEGER
        ) STRICT, WITHOUT ROWID"""
    )


_OBJECTS = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE groups (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
    created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL,
    revision INTEGER NOT NULL, rules_revision INTEGER NOT NULL, members_revision INTEGER NOT NULL,
    UNIQUE (project, name)
) STRICT;
CREATE TABLE rules (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, group_id TEXT NOT NULL REFERENCES groups (id),
    spec TEXT NOT NULL, identity TEXT NOT NULL, remote_group_id TEXT REFERENCES groups (id),
    created_us INTEGER NOT NULL, revision INTEGER NOT NULL,
    UNIQUE (group_id, identity)
) STRICT;
CREATE INDEX rules_by_remote_group ON rules (remote_group_id) WHERE remote_group_id IS NOT NULL;
CREATE TABLE servers (
    project TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, agent_id TEXT NOT NULL,
    created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, revision INTEGER NOT NULL, binding_revision INTEGER NOT NULL,
    previous_agent_id TEXT NOT NULL, moved_revision INTEGER NOT NULL,
    PRIMARY KEY (project, id)
) STRICT;
CREATE TABLE projects (project TEXT PRIMARY KEY, server_count INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE addresses (
    project TEXT NOT NULL, address TEXT NOT NULL, server_id TEXT NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (project, address),
    FOREIGN KEY (project, server_id) REFERENCES servers (project, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX addresses_by_server ON addresses (project, server_id, position);
CREATE TABLE attachments (
    project TEXT NOT NULL, server_id TEXT NOT NULL, group_id TEXT NOT NULL REFERENCES groups (id),
    PRIMARY KEY (project, server_id, group_id),
    FOREIGN KEY (project, server_id) REFERENCES servers (project, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX attachments_by_group ON attachments (group_id, server_id);
CREATE TABLE changes (
    revision INTEGER NOT NULL, seq INTEGER NOT NULL, project TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
    before TEXT, after TEXT, at_us INTEGER NOT NULL, actor TEXT NOT NULL,
    PRIMARY KEY (revision, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE requests (
    project TEXT NOT NULL, method TEXT NOT NULL, request_id TEXT NOT NULL,
    fingerprint BLOB NOT NULL, answer BLOB NOT NULL, at_us INTEGER NOT NULL,
    PRIMARY KEY (project, method, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_by_time ON requests (at_us)
"""
