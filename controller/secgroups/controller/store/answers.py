"""Answers kept for an hour, so that a request which is repeated because its answer was lost is not done twice."""

from __future__ import annotations

import sqlite3

from secgroups.controller.errors import InvalidError
from secgroups.controller.store.interface import RequestKey

AGE_MAX_US = 3600 * 1_000_000


def find(connection: sqlite3.Connection, key: RequestKey, now_us: int) -> bytes | None:
    """Return the answer to the same request within the last hour. InvalidError if its body was another one."""
    row = connection.execute(
        "SELECT fingerprint, answer FROM requests WHERE project = ? AND method = ? AND request_id = ? AND at_us > ?",
        (key.project, key.method, key.request_id, now_us - AGE_MAX_US),
    ).fetchone()
    if row is None:
        return None
    if row["fingerprint"] != key.fingerprint:
        raise InvalidError("request_id", f"{key.request_id!r} was used within the last hour with another body; take a new one")
    return bytes(row["answer"])


def keep(connection: sqlite3.Connection, key: RequestKey, answer: bytes, now_us: int) -> None:
    """Keep the answer, in place of one that is older than an hour."""
    row = (key.project, key.method, key.request_id, key.fingerprint, answer, now_us)
    connection.execute("INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?, ?, ?)", row)


def count(connection: sqlite3.Connection) -> int:
    """Return how many answers are kept."""
    return int(connection.execute("SELECT count(*) FROM requests").fetchone()[0])


def prune(connection: sqlite3.Connection, *, now_us: int, surplus: int, rows_max: int) -> int:
    """Forget what is older than an hour and the ``surplus`` oldest, at most ``rows_max`` of them; return how many."""
    oldest = "SELECT at_us FROM requests ORDER BY at_us LIMIT ?"
    forgotten = 0
    # Mostly there is nothing to forget, and the first row tells.
    for rows in (1, rows_max):
        times_us = [row[0] for row in connection.execute(oldest, [rows])]
        expired = sum(at_us <= now_us - AGE_MAX_US for at_us in times_us)
        forgotten = max(expired, min(surplus, len(times_us)))
        if not forgotten:
            return 0
    connection.execute(
        "DELETE FROM requests WHERE (project, method, request_id) IN"
        " (SELECT project, method, request_id FROM requests ORDER BY at_us LIMIT ?)",
        [forgotten],
    )
    return forgotten
