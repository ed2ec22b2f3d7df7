"""The openings of a store: each begins a timeline at the revision that it finds, so that a file put back from a backup is noticed.

Two copies of a file count the same revisions for different changes from where they parted. What an agent knows is a point
(timeline, revision), and a point is on the history of a file if the file knows the timeline and the next one began no earlier.
"""

from __future__ import annotations

import sqlite3
from itertools import pairwise

# An agent that was away for more openings than this is sent everything anew.
TIMELINES_MAX = 1_000


def read(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the timelines that are over, each with the last revision that is on it."""
    rows = connection.execute("SELECT id, began_revision FROM timelines ORDER BY number").fetchall()
    return {earlier["id"]: later["began_revision"] for earlier, later in pairwise(rows)}


def begin(connection: sqlite3.Connection, timeline_id: str, revision: int) -> None:
    """Write down a new timeline and forget the oldest beyond ``TIMELINES_MAX``."""
    connection.execute("INSERT INTO timelines (id, began_revision) VALUES (?, ?)", (timeline_id, revision))
    connection.execute("DELETE FROM timelines WHERE number <= (SELECT max(number) FROM timelines) - ?", [TIMELINES_MAX])
