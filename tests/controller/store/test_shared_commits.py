"""Mutations that wait together share a commit: each has its own revision or its own refusal, and harms no other."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_world import PROJECT, Clock, allow, commit, everything, folded, named_group, new_group, new_server

from secgroups.controller import core as core_module
from secgroups.controller import operations as ops
from secgroups.controller.core import Core
from secgroups.controller.errors import AlreadyExistsError, InvalidError, NotFoundError, StoreUnavailableError
from secgroups.controller.state import State
from secgroups.controller.store.interface import Pending, Transaction
from secgroups.controller.store.sqlite import SqliteStore

Operation = Callable[[Transaction], Any]
WAIT_S = 30.0


def add_rule(port: int, name: str = "default") -> Operation:
    return lambda tx: ops.create_rules(tx, project=PROJECT, group_id=named_group(tx, name).id, specs=[allow(port)], bulk=False)


def names_of(results: list[Any]) -> list[str]:
    return [type(result).__name__ if isinstance(result, Exception) else str(result.revision) for result in results]


def half_done(tx: Transaction) -> None:
    """Write three kinds of objects, then fail as nobody expects."""
    ops.create_group(tx, project=PROJECT, name="half")
    ops.create_server(tx, project=PROJECT, server_id="half", addresses=[ip_address("10.9.9.9")])
    add_rule(4242)(tx)
    raise RuntimeError("in the middle")


def fault_of_sql(tx: Transaction) -> None:
    """Run into a constraint of the schema, as a bug of an operation would."""
    rule = tx.rules_of_group(named_group(tx, "a").id)[0]
    tx.put_rule(None, replace(rule, id=tx.new_id()))


def test_each_of_a_batch_gets_what_it_would_get_alone(store: SqliteStore) -> None:
    cases: list[tuple[str, Operation]] = [
        ("1", new_group("a")),
        ("AlreadyExistsError", new_group("a")),
        ("RuntimeError", half_done),
        ("2", new_group("b")),
        ("IntegrityError", fault_of_sql),
        ("3", add_rule(22, "a")),
        ("4", add_rule(22, "b")),
        ("AlreadyExistsError", add_rule(22, "a")),
        ("4", lambda tx: named_group(tx, "a")),
        ("5", new_server("s", "10.0.0.1")),
        ("AlreadyExistsError", new_server("t", "10.0.0.1")),
    ]
    results = store.commit([Pending(operation) for _, operation in cases])
    assert names_of(results) == [expected for expected, _ in cases]
    state = State(store.load())
    assert [group.name for group in state.groups(PROJECT)] == ["default", "a", "b"]
    assert [server.id for server in state.servers(PROJECT)] == ["s"]
    assert store.revision == 5
    assert everything(folded(store, 3)) == everything(state)


def test_a_batch_in_which_nothing_changes_writes_nothing(store: SqliteStore, path: Path) -> None:
    commit(store, new_group("a"))
    before = path.with_name("secgroups.db-wal").read_bytes()
    results = store.commit([Pending(new_group("a")), Pending(lambda tx: named_group(tx, "a")), Pending(half_done)])
    assert names_of(results) == ["AlreadyExistsError", "1", "RuntimeError"]
    assert path.with_name("secgroups.db-wal").read_bytes() == before
    assert store.commit([]) == []


def test_a_group_never_takes_the_place_of_another(store: SqliteStore) -> None:
    group = commit(store, new_group("a")).value
    commit(store, lambda tx: ops.replace_rules(tx, project=PROJECT, group_id=group.id, specs=[]))

    def usurp(tx: Transaction) -> None:
        # Past the check for the name, as a bug would be.
        tx.put_group(None, replace(group, id=tx.new_id()))

    with pytest.raises(sqlite3.IntegrityError):
        commit(store, usurp)
    assert [found.id for found in State(store.load()).groups(PROJECT) if found.name == "a"] == [group.id]


# What may wait together: operations that find what they change by name.
_names = st.sampled_from(["default", "a", "b"])
_operations = st.one_of(
    st.builds(new_group, _names),
    st.builds(lambda name: lambda tx: ops.delete_group(tx, project=PROJECT, group_id=named_group(tx, name).id), _names),
    st.builds(add_rule, st.integers(1, 3), _names),
    st.builds(
        lambda name, ports: (
            lambda tx: ops.replace_rules(
                tx, project=PROJECT, group_id=named_group(tx, name).id, specs=[allow(port) for port in ports]
            )
        ),
        _names,
        st.sets(st.integers(1, 3)),
    ),
    st.builds(new_server, st.sampled_from(["s", "t"]), st.sampled_from(["10.0.0.1", "10.0.0.2"])),
    st.builds(
        lambda server_id: lambda tx: ops.delete_server(tx, project=PROJECT, server_id=server_id), st.sampled_from(["s", "t"])
    ),
    st.builds(
        lambda name: lambda tx: ops.attach_group(tx, project=PROJECT, server_id="s", group_id=named_group(tx, name).id), _names
    ),
    st.just(half_done),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(_operations, max_size=12), st.lists(st.integers(1, 12), max_size=4))
def test_it_does_not_matter_who_shares_a_commit_with_whom(operations: list[Operation], sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory(prefix="secgroups-test-") as folder:
        ends = []
        for batches in ([operations[at : at + 1] for at in range(len(operations))], split(operations, sizes)):
            clock = Clock()
            with closing(SqliteStore(Path(folder) / f"{len(ends)}.db", durable=False, clock_us=clock)) as store:
                results = [result for batch in batches for result in store.commit([Pending(each) for each in batch])]
                ends.append((names_of(results), *described(State(store.load()))))
        assert ends[0] == ends[1]


def described(state: State) -> tuple[Any, ...]:
    """Return what a state holds without the ids that were drawn."""
    names = {group.id: group.name for group in state.groups(PROJECT)}
    rules = sorted((names[each.group_id], str(each.spec.ports), each.revision) for each in state.rules(PROJECT))
    servers = [
        (each.id, each.addresses, sorted(names[group_id] for group_id in each.group_ids), each.revision)
        for each in state.servers(PROJECT)
    ]
    return state.revision, sorted(names.values()), rules, servers


def split(operations: list[Operation], sizes: list[int]) -> list[list[Operation]]:
    batches, at = [], 0
    for size in sizes:
        batches.append(operations[at : at + size])
        at += size
    return [*batches, operations[at:]]


# Through the core: many callers, one writer.


@asynccontextmanager
async def running(path: Path, **how: Any) -> AsyncIterator[Core]:
    core = Core(SqliteStore(path, durable=False, **how))
    try:
        yield core
    finally:
        await core.close()


class Gate:
    """An operation that holds the writer up until it is let go, so that others gather behind it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, tx: Transaction) -> None:
        self.reached.set()
        assert self.open.wait(WAIT_S)


async def gathered_behind(core: Core, *operations: Operation) -> tuple[Gate, list[asyncio.Task[Any]]]:
    """Let ``operations`` wait behind a gate; return it and all tasks, that of the gate first."""
    gate = Gate()
    tasks = [asyncio.create_task(core.change(gate))]
    assert await asyncio.to_thread(gate.reached.wait, WAIT_S)
    tasks += [asyncio.create_task(core.change(operation)) for operation in operations]
    # A turn of the loop for each, so that they stand in the queue.
    await asyncio.sleep(0)
    return gate, tasks


async def test_callers_that_wait_share_a_commit_and_are_answered_in_order_of_revision(path: Path) -> None:
    clock = Clock()
    async with running(path, clock_us=clock) as core:
        told: list[tuple[list[int], int]] = []
        core.listen(lambda changes: told.append((list(dict.fromkeys(change.revision for change in changes)), core.state.revision)))
        gate, tasks = await gathered_behind(core, *(new_group(f"g{number}") for number in range(20)), new_group("g3"))
        written = _frames(path)
        gate.open.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S)
        assert [outcome.revision for outcome in results[1:-1]] == list(range(1, 21))
        assert isinstance(results[-1], AlreadyExistsError)
        # The state has a change before anybody is told of it, and what was committed together is told of at once.
        assert [revision for revisions, _ in told for revision in revisions] == list(range(1, 21))
        assert [(revisions[-1], state) for revisions, state in told] == [(16, 16), (20, 20)]
        # A commit writes each page that it touched once: twenty of their own would write several times as many.
        shared = _frames(path) - written
        for number in range(20):
            await core.change(new_group(f"h{number}"))
        assert 0 < shared < (_frames(path) - written - shared) / 3


def _frames(path: Path) -> int:
    wal = path.with_name("secgroups.db-wal")
    return wal.stat().st_size if wal.exists() else 0


async def test_who_gave_up_before_its_turn_has_done_nothing_and_who_gave_up_later_has(path: Path) -> None:
    async with running(path) as core:
        late = Gate()
        gate, tasks = await gathered_behind(core, new_group("early"), late, new_group("between"), new_group("last"))
        _, early, at_gate, between, last = tasks
        early.cancel()
        await asyncio.wait([early])
        gate.open.set()
        assert await asyncio.to_thread(late.reached.wait, WAIT_S)

        # The commit is under way: nothing of it is taken back.
        between.cancel()
        await asyncio.wait([between])
        late.open.set()
        await asyncio.wait_for(at_gate, WAIT_S)
        assert (await asyncio.wait_for(last, WAIT_S)).revision == core.state.revision == 2
        assert [group.name for group in core.state.groups(PROJECT)] == ["default", "between", "last"]


async def test_two_first_uses_at_once_make_one_default_group(path: Path) -> None:
    async with running(path) as core:
        use = [lambda tx: ops.ensure_default_group(tx, PROJECT)] * 5
        gate, tasks = await gathered_behind(core, *use, new_group("a"), new_server("s", "10.0.0.1"), *use)
        gate.open.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)
        assert [outcome.revision for outcome in results[1:]] == [1] * 5 + [2, 3] + [3] * 5
        defaults = [outcome.value for outcome in [*results[1:6], *results[8:]]]
        assert {group.id for group in defaults} == {group.id for group in core.state.groups(PROJECT) if group.is_default}
        assert [group.name for group in core.state.groups(PROJECT)] == ["default", "a"]
        assert core.state.rule_count(defaults[0].id) == 3


async def test_what_waits_when_the_core_closes_is_committed_and_what_comes_later_refused(path: Path) -> None:
    core = Core(SqliteStore(path, durable=False))
    gate, tasks = await gathered_behind(core, new_group("a"), new_group("b"))
    closing_core = asyncio.create_task(core.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailableError, match="stopping"):
        await core.change(new_group("c"))
    gate.open.set()
    results = await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)
    await closing_core
    await core.close()
    assert [outcome.revision for outcome in results[1:]] == [1, 2]
    with closing(SqliteStore(path)) as store:
        assert [group.name for group in State(store.load()).groups(PROJECT)] == ["default", "a", "b"]


async def test_too_many_that_wait_are_told_to_come_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "WAITING_MAX", 3)
    async with running(path) as core:
        gate, tasks = await gathered_behind(core, new_group("a"), new_group("b"))
        with pytest.raises(StoreUnavailableError, match="3 changes are waiting for the disk, the most allowed"):
            await core.change(new_group("c"))
        gate.open.set()
        await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)
        assert (await core.change(new_group("c"))).revision == 3


async def test_a_listener_that_fails_keeps_nobody_from_hearing(path: Path) -> None:
    async with running(path) as core:
        told: list[int] = []

        def fail(changes: Any) -> None:
            raise RuntimeError("a bug")

        core.listen(fail)
        stop = core.listen(lambda changes: told.append(changes[0].revision))
        assert [(await core.change(new_group(name))).revision for name in ("a", "b")] == told == [1, 2]
        stop()
        await core.change(new_group("c"))
        assert told == [1, 2]
        assert [group.name for group in core.state.groups(PROJECT)] == ["default", "a", "b", "c"]


async def test_refusals_reach_their_own_callers(path: Path) -> None:
    async with running(path) as core:
        operations = [
            lambda tx: ops.delete_rule(tx, project=PROJECT, rule_id="none"),
            new_group("ok"),
            lambda tx: ops.create_rules(tx, project=PROJECT, group_id=named_group(tx, "ok").id, specs=[], bulk=True),
            half_done,
        ]
        gate, tasks = await gathered_behind(core, *operations)
        gate.open.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S)
        assert [type(each) for each in results[1:2] + results[3:]] == [NotFoundError, InvalidError, RuntimeError]
        assert results[2].revision == 1
