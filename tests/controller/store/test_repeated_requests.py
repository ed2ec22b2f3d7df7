"""A request that is repeated within an hour gets the answer of the first time, across restarts; with another body it is refused."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from store_world import HOUR_US, PROJECT, SECOND_US, Clock, commit, named_group, new_group

from secgroups.controller import operations as ops
from secgroups.controller.core import Core
from secgroups.controller.errors import AlreadyExistsError, InvalidError
from secgroups.controller.state import State
from secgroups.controller.store import sqlite as sqlite_module
from secgroups.controller.store.interface import Committed, Pending, RequestKey
from secgroups.controller.store.sqlite import SqliteStore


def key(request_id: str = "r1", body: bytes = b"body", project: str = PROJECT, method: str = "CreateGroup") -> RequestKey:
    return RequestKey(project=project, method=method, request_id=request_id, fingerprint=body)


def encode(group: Any, revision: int) -> bytes:
    return f"{group.name} {group.id} at {revision}".encode()


def ask(store: SqliteStore, name: str = "web", request: RequestKey | None = None, **how: Any) -> Committed[Any]:
    return commit(store, new_group(name), request=request or key(), encode=encode, **how)


def group_names(store: SqliteStore) -> list[str]:
    return [group.name for group in State(store.load()).groups(PROJECT)]


def test_the_same_request_gets_the_same_answer_and_is_not_done_again(path: Path, store: SqliteStore, clock: Clock) -> None:
    first = ask(store)
    assert (first.replayed, first.revision) == (None, 1)
    answer = encode(first.value, 1)
    commit(store, lambda tx: ops.delete_group(tx, project=PROJECT, group_id=first.value.id))
    clock.now_us += HOUR_US - SECOND_US
    for reopened in (False, True):
        if reopened:
            store.close()
            store = SqliteStore(path, clock_us=clock, durable=False)
        # Whatever became of it since.
        again = ask(store)
        assert (again.replayed, again.value, again.revision, list(again.changes)) == (answer, None, 2, [])
        assert group_names(store) == ["default"]
    store.close()


@pytest.mark.parametrize(
    ("replayed", "other"),
    [
        (True, key()),
        (False, key(request_id="r2")),
        (False, key(method="UpdateGroup")),
        (False, key(project="q")),
    ],
    ids=["the same", "another id", "another method", "another project"],
)
def test_only_the_same_id_of_the_same_method_and_project_is_a_repeat(store: SqliteStore, replayed: bool, other: RequestKey) -> None:
    ask(store)
    if replayed:
        assert ask(store, "db", other).replayed is not None
        assert group_names(store) == ["default", "web"]
    else:
        assert ask(store, "db", other).replayed is None
        assert group_names(store) == ["default", "web", "db"]


def test_the_same_id_with_another_body_is_refused_and_the_first_answer_stays(path: Path, store: SqliteStore, clock: Clock) -> None:
    answer = encode(ask(store).value, 1)
    for reopened in (False, True):
        if reopened:
            store.close()
            store = SqliteStore(path, clock_us=clock, durable=False)
        with pytest.raises(InvalidError, match=r"request_id: 'r1' was used within the last hour with another body"):
            ask(store, "db", key(body=b"other"))
        assert ask(store).replayed == answer
        assert store.revision == 1
    store.close()


@pytest.mark.parametrize(("replayed", "later_us"), [(True, HOUR_US - 1), (False, HOUR_US), (False, 30 * HOUR_US)])
def test_after_an_hour_the_id_is_free_again(store: SqliteStore, clock: Clock, replayed: bool, later_us: int) -> None:
    ask(store)
    clock.now_us += later_us
    if replayed:
        assert ask(store).replayed is not None
    else:
        with pytest.raises(AlreadyExistsError):
            ask(store)
        # Its hour begins anew, also for another body.
        second = ask(store, "db", key(body=b"other"))
        clock.now_us += HOUR_US - 1
        assert ask(store, "db", key(body=b"other")).replayed == encode(second.value, 2)


def test_a_refused_request_may_be_tried_again(store: SqliteStore) -> None:
    group = commit(store, new_group("web")).value
    with pytest.raises(AlreadyExistsError):
        ask(store)
    commit(store, lambda tx: ops.delete_group(tx, project=PROJECT, group_id=group.id))
    assert ask(store).replayed is None
    assert ask(store).replayed is not None


def test_a_request_that_changed_nothing_is_remembered_without_a_revision(path: Path, store: SqliteStore, clock: Clock) -> None:
    group = commit(store, new_group("web")).value
    look = {"request": key(), "encode": encode}
    assert commit(store, lambda tx: named_group(tx, "web"), **look).revision == 1
    store.close()
    with closing(SqliteStore(path, clock_us=clock, durable=False)) as again:
        assert commit(again, lambda tx: named_group(tx, "gone"), **look).replayed == encode(group, 1)
        assert again.revision == 1


def test_what_only_validates_neither_leaves_nor_takes_an_answer(store: SqliteStore) -> None:
    tried = ask(store, validate_only=True)
    assert (tried.value.name, tried.revision, len(tried.changes)) == ("web", 0, 7)
    assert group_names(store) == []
    first = ask(store)
    with pytest.raises(AlreadyExistsError):
        ask(store, validate_only=True)
    assert ask(store).replayed == encode(first.value, 1)


def test_repeats_that_wait_together_are_done_once(store: SqliteStore) -> None:
    waiting = [Pending(new_group("web"), request=key(), encode=encode) for _ in range(3)]
    other = Pending(new_group("web"), request=key(body=b"other"), encode=encode)
    first, second, refused, third = store.commit([waiting[0], waiting[1], other, waiting[2]])
    assert isinstance(first, Committed)
    assert isinstance(refused, InvalidError)
    for repeat in (second, third):
        assert isinstance(repeat, Committed)
        assert (repeat.replayed, repeat.revision) == (encode(first.value, 1), 1)


def test_an_answer_that_can_not_be_made_undoes_its_request(store: SqliteStore) -> None:
    def fail(group: Any, revision: int) -> bytes:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        commit(store, new_group("web"), request=key(), encode=fail)
    assert (store.revision, group_names(store)) == (0, [])
    assert ask(store).revision == 1


async def test_the_core_hands_the_answer_on_and_tells_listeners_once(path: Path) -> None:
    core = Core(SqliteStore(path, durable=False))
    told: list[int] = []
    core.listen(lambda changes: told.append(changes[0].revision))
    outcomes = await asyncio.gather(*(core.change(new_group("web"), request=key(), encode=encode) for _ in range(5)))
    answers = [outcome.replayed for outcome in outcomes if outcome.replayed is not None]
    (first,) = (outcome for outcome in outcomes if outcome.replayed is None)
    assert answers == [encode(first.value, 1)] * 4
    assert {outcome.revision for outcome in outcomes} == {1}
    assert told == [1]
    assert [group.name for group in core.state.groups(PROJECT)] == ["default", "web"]
    await core.close()


@pytest.mark.parametrize("reopened", [False, True])
def test_no_more_answers_are_kept_than_allowed(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, reopened: bool) -> None:
    monkeypatch.setattr(sqlite_module, "ANSWERS_MAX", 5)
    store = SqliteStore(path, clock_us=clock, durable=False)
    for number in range(12):
        clock.now_us += 2 * SECOND_US
        ask(store, f"g{number}", key(f"r{number}"))
        if reopened:
            store.close()
            store = SqliteStore(path, clock_us=clock, durable=False)
    kept = [number for number in range(12) if is_kept(store, f"r{number}")]
    # The youngest, and one more between two rounds at most.
    assert kept in ([7, 8, 9, 10, 11], [6, 7, 8, 9, 10, 11])
    clock.now_us += HOUR_US
    ask(store, "last", key("last"))
    assert [number for number in range(12) if is_kept(store, f"r{number}")] == []
    store.close()


def is_kept(store: SqliteStore, request_id: str) -> bool:
    """Say whether an answer is there: whoever asks with another body is then refused."""
    (result,) = store.commit([Pending(lambda tx: None, request=key(request_id, b"other"))])
    return isinstance(result, InvalidError)
