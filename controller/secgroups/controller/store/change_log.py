"""The change log: what every revision did to which object, who did it and when. Old entries are forgotten, the oldest first."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby

from secgroups.controller.model import Change, ObjectKind
from secgroups.controller.store.interface import ChangePage
from secgroups.controller.store.records import record_of, thing_of

_INSERT = "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def append(connection: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Write the changes of whole revisions, in order."""
    seqs = _seqs(changes)
    connection.executemany(
        _INSERT,
        [
            (
                change.revision,
                seq,
                _project_of(change),
                change.kind,
                change.key,
                record_of(change.before),
                record_of(change.after),
                change.at_us,
                change.actor,
            )
            for seq, change in zip(seqs, changes, strict=True)
        ],
    )


def read(connection: sqlite3.Connection, revision: int, limit: int) -> ChangePage:
    """Return whole revisions after ``revision``: about ``limit`` changes, at least one revision if there is one."""
    connection.execute("BEGIN")
    try:
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        last, compacted = int(meta["revision"]), int(meta["compacted_revision"])
        if revision < compacted:
            return ChangePage(changes=(), revision=last, gap=True)
        # The revision of the first change that does not fit; all before it are whole.
        query = "SELECT revision FROM changes WHERE revision > ? ORDER BY revision, seq LIMIT 1 OFFSET ?"
        cut = connection.execute(query, (revision, max(limit, 1))).fetchone()
        first = connection.execute(query, (revision, 0)).fetchone()
        upto = last if cut is None else max(cut[0] - 1, first[0])
        rows = connection.execute(
            "SELECT * FROM changes WHERE revision > ? AND revision <= ? ORDER BY revision, seq", (revision, upto)
        )
        return ChangePage(changes=tuple(map(_change_of, rows)), revision=upto)
    finally:
        connection.execute("ROLLBACK")


def read_back(
    connection: sqlite3.Connection,
    project: str,
    before: tuple[int, int] | None,
    limit: int,
    without: Collection[ObjectKind] = (),
) -> list[tuple[Change, tuple[int, int]]]:
    """Return the latest changes before a place (revision, and number within it), the newest first, each with its place.

    Of one project, or of all if that is empty, ``without`` some kinds of object; None for the end of the log.
    """
    conditions: list[str] = []
    values: list[str | int] = []
    if project:
        conditions.append("project = ?")
        values.append(project)
    if before is not None:
        conditions.append("(revision, seq) < (?, ?)")
        values += before
    if without:
        conditions.append(f"kind NOT IN ({', '.join('?' * len(without))})")
        values += without
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    query = f"SELECT * FROM changes {where} ORDER BY revision DESC, seq DESC LIMIT ?"  # noqa: S608
    return [(_change_of(row), (row["revision"], row["seq"])) for row in connection.execute(query, (*values, limit))]


def read_of(connection: sqlite3.Connection, key: str, limit: int) -> list[Change]:
    """Return the latest changes of the objects with a key, the newest first."""
    query = "SELECT * FROM changes WHERE key = ? ORDER BY revision DESC LIMIT ?"
    return [_change_of(row) for row in connection.execute(query, (key, limit))]


def prune(connection: sqlite3.Connection, *, before_us: int, upto_revision: int, rows_max: int) -> int | None:
    """Forget revisions from before ``before_us`` and those up to ``upto_revision``, oldest first, about ``rows_max`` rows of them.

    Returns the last one forgotten, None if none was.
    """
    query = "SELECT revision, at_us FROM changes ORDER BY revision, seq LIMIT ?"
    forgotten = None
    # Mostly there is nothing to forget, and the first row tells.
    for rows in (1, rows_max):
        for revision, at_us in connection.execute(query, [rows]).fetchall():
            if at_us >= before_us and revision > upto_revision:
                break
            forgotten = revision
        if forgotten is None:
            return None
    connection.execute("DELETE FROM changes WHERE revision <= ?", [forgotten])
    connection.execute("UPDATE meta SET value = ? WHERE key = 'compacted_revision'", [str(forgotten)])
    return forgotten


def _change_of(row: sqlite3.Row) -> Change:
    return Change(
        revision=row["revision"],
        kind=row["kind"],
        key=row["key"],
        before=thing_of(row["kind"], row["before"]),
        after=thing_of(row["kind"], row["after"]),
        at_us=row["at_us"],
        actor=row["actor"],
    )


def _seqs(changes: Sequence[Change]) -> Iterator[int]:
    """Yield the place of each change in its revision."""
    for _, same_revision in groupby(changes, key=lambda change: change.revision):
        yield from (seq for seq, _ in enumerate(same_revision))


def _project_of(change: Change) -> str:
    thing = change.after or change.before
    return thing.project if thing else ""
