"""Timelines: whether a point of an agent is in the past of a file, whatever became of the file and its copies."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations
from store_world import PROJECT, commit, files, new_group, new_server

from secgroups.controller import operations as ops
from secgroups.controller.errors import StoreFileError
from secgroups.controller.model import PREVIOUS_AGENTS_MAX
from secgroups.controller.state import State
from secgroups.controller.store import migrations
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.controller.store.timelines import TIMELINES_MAX


def opened(path: Path, changes: int = 0) -> SqliteStore:
    """Open a file as a controller does, and change something so many times."""
    store = SqliteStore(path, durable=False)
    store.load()
    store.begin_timeline()
    for number in range(changes):
        commit(store, new_group(f"g{store.revision}-{number}"))
    return store


def lived(path: Path, changes: int) -> str:
    """Let a controller live on a file; return its timeline."""
    with closing(opened(path, changes)) as store:
        return store.timeline_id


def test_a_point_is_on_the_history_up_to_where_the_next_timeline_began(path: Path) -> None:
    first, second, third = lived(path, 3), lived(path, 0), lived(path, 2)
    with closing(opened(path, 4)) as store:
        now = store.timeline_id
        assert len({first, second, third, now}) == 4
        for timeline_id, end in ((first, 3), (second, 3), (third, 5), (now, 9)):
            covered = [revision for revision in range(15) if store.covers(timeline_id, revision)]
            assert covered == list(range(end + 1))
        assert not store.covers("", 0)
        assert not store.covers("another", 0)


def test_a_file_put_back_from_a_copy_knows_what_was_after_the_copy_for_a_stranger(path: Path) -> None:
    first = lived(path, 5)
    shutil.copy(path, path.with_name("copy.db"))
    second = lived(path, 5)
    shutil.move(path.with_name("copy.db"), path)
    with closing(opened(path, 20)) as store:
        assert store.revision == 25
        assert store.covers(first, 5)
        # The copy was never told of the second timeline; the first ended there.
        assert not store.covers(first, 6)
        assert not store.covers(second, 5)
        assert not store.covers(second, 10)
        assert store.covers(store.timeline_id, 25)


def test_a_copy_of_a_file_in_use_ends_the_timeline_where_it_was_made(path: Path) -> None:
    with closing(opened(path, 5)) as store:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(path.with_name("copy.db"))) as target:
            source.backup(target)
        for number in range(5):
            commit(store, new_group(f"later-{number}"))
        timeline_id = store.timeline_id
    with closing(opened(path.with_name("copy.db"), 10)) as copy:
        assert [copy.covers(timeline_id, revision) for revision in (5, 6, 10)] == [True, False, False]


def test_only_the_latest_timelines_are_kept(path: Path) -> None:
    first = lived(path, 1)
    with closing(opened(path)) as store:
        assert store.covers(first, 1)
        for _ in range(TIMELINES_MAX - 2):
            store.begin_timeline()
        assert store.covers(first, 1)
        store.begin_timeline()
        assert not store.covers(first, 1)
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT count(*) FROM timelines").fetchone() == (TIMELINES_MAX,)


def test_opening_a_file_without_serving_it_begins_nothing(path: Path) -> None:
    timeline_id = lived(path, 2)
    before = files(path.parent)
    with closing(SqliteStore(path)) as store:
        assert store.timeline_id == ""
        store.load()
    assert files(path.parent) == before
    with closing(opened(path)) as store:
        assert store.covers(timeline_id, 2)


def test_a_timeline_that_can_not_be_written_is_a_reason_not_to_start(path: Path) -> None:
    lived(path, 1)
    with closing(SqliteStore(path, durable=False)) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        store._connection.execute("PRAGMA busy_timeout = 10")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFileError, match="is locked by another program"):
            store.begin_timeline()
        other.execute("ROLLBACK")
        assert store.timeline_id == ""
        store.begin_timeline()
        assert store.timeline_id


# Files of earlier programs.


def made_by_the_first_program(path: Path) -> None:
    """Write a file as the first released schema has it: a server on its way from a to b, and the change that moved it."""
    first = Migrations("secgroups")
    first(name="m001_objects")(migrations.m001_objects)
    with closing(Database(str(path))) as database:
        first.apply(database)
        record = (
            '{"project":"p","id":"s","name":"","agent_id":"b","created_us":1,"updated_us":2,"revision":2,"binding_revision":1,'
            '"previous_agent_id":"a","moved_revision":2,"addresses":["10.0.0.1"],"group_ids":["g"]}'
        )
        for statement in (
            "INSERT INTO groups VALUES ('g', 'p', 'default', '', 1, 1, 1, 1, 1)",
            "INSERT INTO servers VALUES ('p', 's', '', 'b', 1, 2, 2, 1, 'a', 2)",
            "INSERT INTO servers VALUES ('p', 't', '', 'b', 1, 1, 1, 1, '', 0)",
            "INSERT INTO projects VALUES ('p', 2)",
            "INSERT INTO addresses VALUES ('p', '10.0.0.1', 's', 0)",
            "INSERT INTO addresses VALUES ('p', '10.0.0.2', 't', 0)",
            "INSERT INTO attachments VALUES ('p', 's', 'g')",
            "INSERT INTO attachments VALUES ('p', 't', 'g')",
            f"INSERT INTO changes VALUES (2, 0, 'p', 'server', 'p/s', NULL, '{record}', 2, '')",
            "UPDATE meta SET value = '2' WHERE key = 'revision'",
        ):
            database.conn.execute(statement)
        database.conn.commit()


def test_a_file_of_the_first_program_is_read_as_it_was_meant(path: Path) -> None:
    made_by_the_first_program(path)
    with closing(opened(path)) as store:
        state = State(store.load())
        servers = [state.find_server(PROJECT, name) for name in "st"]
        assert [(each.previous_agent_ids, each.moved_revision) for each in servers] == [(("a",), 2), ((), 0)]
        (change,) = store.changes_since(1).changes
        assert change.after == servers[0]
        moved = commit(store, lambda tx: ops.update_server(tx, project=PROJECT, server_id="s", agent_id="c")).value
        assert moved.previous_agent_ids == ("b", "a")
    with closing(opened(path)) as store:
        assert State(store.load()).find_server(PROJECT, "s") == moved
        assert store.changes_since(2).changes[0].after == moved


# Which agents may hold a server on its way.


@pytest.mark.parametrize(
    ("expected", "agents"),
    [
        ("", ""),
        ("", "a"),
        ("a", "ab"),
        ("ba", "abc"),
        ("b", "aba"),
        ("ab", "abac"),
        ("cba", "abcd"),
        ("", "ab-"),
        ("", "ab-c"),
        ("c", "ab-cd"),
        ("hgfedcba", "abcdefghi"),
        ("ihgfedcb", "abcdefghij"),  # The first one is forgotten.
    ],
)
def test_all_that_may_hold_a_server_are_stored_the_latest_first(path: Path, expected: str, agents: str) -> None:
    with closing(opened(path)) as store:
        commit(store, new_server("s", "10.0.0.1"))
        for name in agents:
            move: Callable = lambda tx, to=name: ops.update_server(  # noqa: E731
                tx, project=PROJECT, server_id="s", agent_id="" if to == "-" else to
            )
            commit(store, move)
        server = State(store.load()).find_server(PROJECT, "s")
        assert server.previous_agent_ids == tuple(expected)
        assert len(server.previous_agent_ids) <= PREVIOUS_AGENTS_MAX
