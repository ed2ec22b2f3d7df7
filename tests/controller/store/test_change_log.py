"""The change log: every revision once and whole, who and when, read in pages; old ones are forgotten and their absence is told."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import (
    BEGIN_US,
    DAY_US,
    PROJECT,
    SECOND_US,
    Clock,
    allow,
    commit,
    everything,
    folded,
    named_group,
    new_group,
    new_server,
)

from secgroups.controller import operations as ops
from secgroups.controller.errors import StoreUnavailableError
from secgroups.controller.model import Change, Group, GroupRemote
from secgroups.controller.state import State
from secgroups.controller.store import change_log
from secgroups.controller.store.ids import Ids
from secgroups.controller.store.interface import Pending, Transaction
from secgroups.controller.store.sqlite import CHANGES_AGE_MAX_US, PRUNE_ROWS_MIN, SqliteStore


def kinds_of(changes: Any) -> list[tuple[int, str, bool, bool]]:
    return [(each.revision, each.kind, each.before is not None, each.after is not None) for each in changes]


def read_whole(store: SqliteStore, revision: int = 0) -> list[Change]:
    return list(store.changes_since(revision, 1_000_000).changes)


def test_it_says_what_was_done_to_which_object_by_whom_and_when(store: SqliteStore, clock: Clock) -> None:
    commit(store, new_group("web"), actor="alice")
    clock.now_us += SECOND_US
    # The request of a person who gave up, and what another tried, are not in it.
    commit(store, new_group("tried"), actor="mallory", validate_only=True)
    commit(store, lambda tx: named_group(tx, "web"), actor="mallory")
    commit(store, new_server("s1", "10.0.0.1"), actor="bob")
    clock.now_us += SECOND_US
    web = commit(store, lambda tx: named_group(tx, "web")).value
    commit(store, lambda tx: ops.delete_group(tx, project=PROJECT, group_id=web.id))

    made, gone = (False, True), (True, False)
    found = read_whole(store)
    assert kinds_of(found) == [
        *((1, kind, *made) for kind in ["group", "rule", "rule", "rule", "group", "rule", "rule"]),
        (2, "server", *made),
        *((3, kind, *gone) for kind in ["rule", "rule", "group"]),
    ]
    assert [(each.actor, each.at_us - BEGIN_US) for each in found] == [
        *[("alice", 0)] * 7,
        ("bob", SECOND_US),
        *[("", 2 * SECOND_US)] * 3,
    ]
    assert found[-1].before == web
    assert found[7].key == "p/s1"
    assert [each.key for each in found[:7]] == [each.after.id for each in found[:7] if each.after]


def test_before_and_after_are_the_objects_as_they_were_and_are(store: SqliteStore) -> None:
    group = commit(store, new_group("web")).value
    spec = allow(22, GroupRemote(group.id), "ssh")
    (rule,) = (
        commit(store, lambda tx: ops.create_rules(tx, project=PROJECT, group_id=group.id, specs=[spec], bulk=False)).value or ()
    )
    described = commit(store, lambda tx: ops.update_rule(tx, project=PROJECT, rule_id=rule.id, description="é\n")).value
    server = commit(store, new_server("s1", "10.0.0.1")).value
    wanted = [ip_address("2001:db8::1"), ip_address("10.0.0.2")]
    values: dict[str, Any] = {"addresses": wanted, "agent_id": "a1", "name": "n", "group_ids": [group.id]}
    moved = commit(store, lambda tx: ops.update_server(tx, project=PROJECT, server_id="s1", **values)).value
    pairs = [(each.before, each.after) for each in read_whole(store, 1)]
    assert pairs == [(None, rule), (rule, described), (None, server), (server, moved)]


def test_an_object_that_changes_twice_in_one_revision_is_told_once(store: SqliteStore) -> None:
    group = commit(store, new_group("web")).value

    def twice(tx: Transaction) -> None:
        for text in ("a", "b"):
            ops.update_group(tx, project=PROJECT, group_id=group.id, description=text)

    def there_and_away(tx: Transaction) -> None:
        ops.delete_group(tx, project=PROJECT, group_id=ops.create_group(tx, project=PROJECT, name="mayfly").id)

    assert commit(store, there_and_away).revision == 1
    commit(store, twice)
    (change,) = read_whole(store, 1)
    assert change.before == group
    assert isinstance(change.after, Group)
    assert change.after.description == "b"


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 6), max_size=8), data=st.data())
def test_pages_hold_whole_revisions_in_order_and_leave_none_out(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("pages") / "secgroups.db"
    with closing(SqliteStore(path, durable=False)) as store:
        commit(store, lambda tx: ops.ensure_default_group(tx, PROJECT))
        for number, size in enumerate(sizes):
            specs = [allow(10 * number + port) for port in range(1, size + 1)]
            commit(store, lambda tx, specs=specs: add(tx, specs))
        whole = read_whole(store)
        begin = data.draw(st.integers(0, store.revision + 2))
        limit = data.draw(st.integers(-1, 10))
        read: list[Change] = []
        at = begin
        while True:
            page = store.changes_since(at, limit)
            read += page.changes
            assert not page.gap
            assert len(page.changes) <= max(limit, *(sum(each.revision == seen for each in page.changes) for seen in range(10)))
            if not page.changes:
                break
            assert page.revision > at
            at = page.revision
        assert page.revision == store.revision
        assert read == [change for change in whole if change.revision > begin]


def add(tx: Transaction, specs: Any) -> Any:
    return ops.create_rules(tx, project=PROJECT, group_id=named_group(tx, "default").id, specs=specs, bulk=True)


def test_a_reader_sees_what_is_committed_and_nothing_of_what_is_not(store: SqliteStore) -> None:
    seen: list[int] = []

    def look(tx: Transaction) -> None:
        ops.create_group(tx, project=PROJECT, name="b")
        seen.append(store.changes_since(0).revision)

    store.commit([Pending(new_group("a")), Pending(look)])
    assert seen == [0]
    assert store.changes_since(0).revision == 2
    store.close()
    with pytest.raises(StoreUnavailableError, match="the store is closed"):
        store.changes_since(0)


# Forgetting.


def test_what_is_older_than_thirty_days_is_forgotten_and_the_gap_is_told(path: Path, store: SqliteStore, clock: Clock) -> None:
    commit(store, new_group("old"))
    clock.now_us += 10 * DAY_US
    commit(store, new_group("younger"))
    clock.now_us = BEGIN_US + CHANGES_AGE_MAX_US
    commit(store, new_group("on-the-day"))
    assert not store.changes_since(0).gap
    clock.now_us += 2 * SECOND_US
    commit(store, new_group("after"))

    for reopened in (False, True):
        if reopened:
            store.close()
            store = SqliteStore(path, clock_us=clock, durable=False)
        page = store.changes_since(0)
        assert (page.gap, list(page.changes), page.revision) == (True, [], 4)
        assert {each.revision for each in read_whole(store, 1)} == {2, 3, 4}
        state = State(store.load())
        assert [group.name for group in state.groups(PROJECT)] == ["default", "old", "younger", "on-the-day", "after"]
    store.close()


def test_a_lot_that_is_old_is_forgotten_in_bites_of_whole_revisions(path: Path, clock: Clock, store: SqliteStore) -> None:
    commit(store, lambda tx: ops.ensure_default_group(tx, PROJECT))
    largest = 190
    for size in [largest, 0] * 4:
        commit(store, lambda tx, size=size: fill(tx, size))
    rows = len(read_whole(store))
    store.close()
    clock.now_us += CHANGES_AGE_MAX_US + SECOND_US
    with closing(SqliteStore(path, clock_us=clock, durable=False)) as again:
        kept = []
        for number in range(3):
            commit(again, new_group(f"g{number}"))
            # The gap ends where what is left begins, and that is whole.
            left = first_kept(again)
            kept.append(len(read_whole(again, left)))
            assert {each.revision for each in read_whole(again, left)} == set(range(left + 1, again.revision + 1))
            clock.now_us += 2 * SECOND_US
    each_adds = 3
    assert 0 < rows + each_adds - kept[0] <= PRUNE_ROWS_MIN + largest
    assert kept[0] > each_adds
    assert kept[1:] == [2 * each_adds, 3 * each_adds]


def fill(tx: Transaction, size: int) -> Any:
    """Give the default group so many rules in place of those it has."""
    specs = [allow(port) for port in range(1, size + 1)]
    return ops.replace_rules(tx, project=PROJECT, group_id=named_group(tx, "default").id, specs=specs)


def first_kept(store: SqliteStore) -> int:
    """Return the earliest revision from which the log is whole."""
    return next(revision for revision in range(store.revision + 1) if not store.changes_since(revision).gap)


@pytest.mark.parametrize(
    ("expected", "before_days", "upto"),
    [
        (None, 0, 0),
        (1, 1, 0),  # by age
        (2, 0, 2),  # by number
        (3, 2, 3),
        (5, 9, 9),
    ],
)
def test_age_and_number_both_bound_it(
    path: Path, clock: Clock, store: SqliteStore, expected: int | None, before_days: int, upto: int
) -> None:
    for number in range(5):
        commit(store, new_group(f"g{number}"))
        clock.now_us += DAY_US
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        before_us = BEGIN_US + before_days * DAY_US
        assert change_log.prune(connection, before_us=before_us, upto_revision=upto, rows_max=1_000) == expected
        assert connection.execute("SELECT coalesce(min(revision), 6) FROM changes").fetchone() == ((expected or 0) + 1,)


def test_a_clock_that_is_set_back_or_far_forward_harms_nothing(path: Path, clock: Clock, store: SqliteStore) -> None:
    group_ids = []
    for step in (0, -DAY_US, -400 * DAY_US, 0, 20 * DAY_US):
        clock.now_us = BEGIN_US + step
        group_ids.append(commit(store, new_group(f"g{len(group_ids)}")).value.id)
    assert group_ids == sorted(group_ids)
    store.close()
    clock.now_us = BEGIN_US - 800 * DAY_US
    with closing(SqliteStore(path, clock_us=clock, durable=False)) as again:
        assert commit(again, new_group("last")).value.id > group_ids[-1]
        assert everything(State(again.load()))[PROJECT]["counts"].keys() >= set(group_ids)


def test_revisions_are_counted_by_one_program_alone(path: Path, store: SqliteStore) -> None:
    commit(store, new_group("a"))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE meta SET value = '7' WHERE key = 'revision'")
        with pytest.raises(StoreUnavailableError, match="another program has changed the file; restart the controller"):
            commit(store, new_group("b"))
        other.execute("UPDATE meta SET value = '1' WHERE key = 'revision'")
    assert commit(store, new_group("b")).revision == 2
    assert everything(folded(store)) == everything(State(store.load()))


# Ids.


@given(st.lists(st.integers(-(10**7), 10**7), max_size=30), st.integers(0, 2**62 - 1))
def test_ids_ascend_whatever_the_clock_does(steps: list[int], random_bits: int) -> None:
    ids, now_us, made = Ids("", lambda bits: random_bits), BEGIN_US, []
    for step in steps:
        now_us = max(0, now_us + step)
        made.append(ids.make(now_us))
        # As after a restart.
        ids = Ids(ids.last, lambda bits: random_bits) if step % 3 == 0 else ids
    assert made == sorted(set(made))
    assert all(each[14] == "7" and each[19] in "89ab" for each in made)
