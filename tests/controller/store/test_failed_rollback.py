"""A disk that fails so thoroughly that even the rollback fails: what is acknowledged after it must be on disk all the same."""

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
