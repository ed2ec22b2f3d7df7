"""Limits of projects in the store: they outlive it, are of the change log, and of a backup."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from store_world import PROJECT, commit, new_group

from secgroups.controller.errors import LimitError, StoreFileError
from secgroups.controller.limit_operations import update_limits
from secgroups.controller.limits import Limits
from secgroups.controller.state import State
from secgroups.controller.store.sqlite import SqliteStore

DEFAULTS = Limits(groups_per_project=2, rules_per_group=5)


def test_overrides_count_after_a_restart_and_are_in_the_change_log(tmp_path: Path) -> None:
    path = tmp_path / "secgroups.db"
    with closing(SqliteStore(path, limits=DEFAULTS, durable=False)) as store:
        commit(store, partial(update_limits, project=PROJECT, changes={"groups_per_project": 3, "rules_per_group": 9}))
        commit(store, partial(update_limits, project=PROJECT, changes={"rules_per_group": None}))
        commit(store, partial(update_limits, project="gone", changes={"rules_per_group": 1}))
        commit(store, partial(update_limits, project="gone", changes={"rules_per_group": None}))
    with closing(SqliteStore(path, limits=DEFAULTS, durable=False)) as store:
        contents = store.load()
        assert [(each.project, dict(each.values), each.revision) for each in contents.limit_overrides] == [
            (PROJECT, {"groups_per_project": 3}, 2)
        ]
        state = State(contents)
        assert state.limits_of(PROJECT, DEFAULTS) == Limits(groups_per_project=3, rules_per_group=5)
        assert state.limits_of("another", DEFAULTS) == DEFAULTS
        commit(store, new_group("one"))
        commit(store, new_group("two"))
        with pytest.raises(LimitError, match="the most allowed is 3"):
            commit(store, new_group("three"))
        # A state that was folded from the log is the state that is read from the tables.
        changes = store.changes_since(0).changes
        assert [(change.kind, change.key) for change in changes[:4]] == [("limits", PROJECT)] * 2 + [("limits", "gone")] * 2
        folded = State(type(contents)(revision=0))
        folded.apply(changes)
        assert list(folded.limit_overrides()) == list(state.limit_overrides())


def test_kinds_that_are_left_out_take_no_place_among_the_latest_changes(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "secgroups.db", durable=False)) as store:
        commit(store, new_group("one"))
        for most in range(1, 6):
            commit(store, partial(update_limits, project=PROJECT, changes={"rules_per_group": most}))
        assert [change.kind for change, _ in store.changes_before(PROJECT, None, 3)] == ["limits"] * 3
        shown = store.changes_before(PROJECT, None, 3, frozenset({"limits", "token"}))
        assert [change.revision for change, _ in shown] == [1] * 3
        assert [change.kind for change, _ in store.changes_before("", None, 9, ["rule", "group"])] == ["limits"] * 5


def test_a_value_that_is_out_of_bounds_is_found_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "secgroups.db"
    SqliteStore(path, durable=False).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO limit_overrides (project, updated_us, revision, rules_per_group) VALUES ('p', 0, 0, 0)")
        connection.commit()
    said = "p: rules_per_group: is 0, rules_per_group must be"
    with closing(SqliteStore(path, durable=False)) as store, pytest.raises(StoreFileError, match=said):
        store.load()
