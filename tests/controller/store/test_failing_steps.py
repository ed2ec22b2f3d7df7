"""Disks that fail at any step, the last of a commit and its rollback included: what is acknowledged is on disk, and nothing else.

SQLite is interrupted after some number of its own steps, which it answers as it answers a disk that fails.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from secgroups.controller import operations
from secgroups.controller.errors import StoreUnavailableError
from secgroups.controller.model import Group
from secgroups.controller.store.interface import Committed, Pending, Transaction
from secgroups.controller.store.sqlite import SqliteStore


@pytest.mark.parametrize("writes_first", [False, True], ids=["before the first write", "after some writes"])
def test_a_commit_after_one_whose_rollback_failed_is_seen_by_others(tmp_path: Path, writes_first: bool) -> None:
    path = tmp_path / "secgroups.db"
    with closing(SqliteStore(path)) as store:

        def fails_for_good(tx: Transaction) -> None:
            if writes_first:
                operations.create_group(tx, project="p", name="never")
            # From here on every statement is interrupted, COMMIT and ROLLBACK too.
            store._connection.set_progress_handler(lambda: 1, 1)
            operations.create_group(tx, project="p", name="never either")

        (refused,) = store.commit([Pending(fails_for_good)])
        assert isinstance(refused, StoreUnavailableError), refused
        # The disk is as bad as before: nothing is acknowledged.
        (refused,) = store.commit([Pending(lambda tx: operations.create_group(tx, project="p", name="nor this"))])
        assert isinstance(refused, StoreUnavailableError), refused

        store._connection.set_progress_handler(None, 0)
        (done,) = store.commit([Pending(lambda tx: operations.create_group(tx, project="p", name="g"))])
        assert isinstance(done, Committed), done
        assert isinstance(done.value, Group)
        assert {change.revision for change in store.changes_since(0).changes} == {1} == {done.revision}
    with closing(SqliteStore(path)) as store:
        assert [group.name for group in store.load().groups] == ["default", "g"]


class Disk:
    """Fails at one step of what is done from now on, the first being 0, and works again; ``steps`` were made so far."""

    def __init__(self, store: SqliteStore, fails_at: int) -> None:
        self.steps = 0
        self.has_failed = False
        self._fails_at = fails_at
        store._connection.set_progress_handler(self._step, 1)

    def _step(self) -> bool:
        fails = self.steps == self._fails_at
        self.has_failed |= fails
        self.steps += 1
        return fails


def test_whatever_step_fails_what_is_refused_is_not_stored_and_what_is_acknowledged_is(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "secgroups.db")) as store:

        def commit(name: str) -> Committed[Group] | Exception:
            (result,) = store.commit([Pending(lambda tx: operations.create_group(tx, project=name, name=name))])
            return result

        commit("first")
        whole = Disk(store, -1)
        commit("second")
        revision, outcomes = store.revision, set()
        # The end of a commit is looked at step by step, until one goes on to the end without meeting the step that fails.
        end = max(0, whole.steps - 100)
        for fails_at in (*range(0, end, 29), *range(end, whole.steps + 100)):
            disk = Disk(store, fails_at)
            result = commit(f"at {fails_at}")
            store._connection.set_progress_handler(None, 0)
            outcomes.add((type(result), disk.has_failed))
            stored = {change.revision for change in store.changes_since(revision).changes}
            if isinstance(result, Committed):
                revision += 1
                assert stored == {result.revision} == {revision}, fails_at
            else:
                assert (type(result), stored) == (StoreUnavailableError, set()), fails_at
        # The last step of all is made when the commit is in the file already.
        assert outcomes == {(StoreUnavailableError, True), (Committed, True), (Committed, False)}
