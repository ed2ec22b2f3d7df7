"""A disk without room: changes are refused whole, reads go on, and with room again so do changes, without a restart."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from store_world import PROJECT, allow, commit, everything, folded, named_group, new_group

from secgroups.controller import operations as ops
from secgroups.controller.core import Core
from secgroups.controller.errors import StoreFileError, StoreUnavailableError
from secgroups.controller.state import State
from secgroups.controller.store.interface import Pending, Transaction
from secgroups.controller.store.sqlite import SqliteStore
from secgroups.lab.stack import Process
from secgroups.v1 import group_service_pb2 as pb
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub

DISK_BYTES = 2 << 20
CALL_TIMEOUT_S = 30.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    if os.geteuid():
        pytest.skip("only root can mount a file system")
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "secgroups-test", where], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)


def fill(disk: Path, free_bytes: int) -> None:
    """Leave about so much room."""
    with (disk / "ballast").open("ab") as ballast:
        state = os.statvfs(disk)
        room = state.f_bavail * state.f_frsize - free_bytes
        os.posix_fallocate(ballast.fileno(), 0, ballast.tell() + max(room, 0) or 1)


def give_room(disk: Path) -> None:
    (disk / "ballast").unlink()


def many_rules(tx: Transaction, seed: int) -> Any:
    """Change a lot at once: another hundred rules."""
    specs = [allow(seed * 100 + port, description=f"{port:0100}") for port in range(1, 101)]
    return ops.replace_rules(tx, project=PROJECT, group_id=named_group(tx, "default").id, specs=specs)


def write_until_full(store: SqliteStore) -> None:
    with pytest.raises(StoreUnavailableError, match=r"^the store can't be written now \(.*\); nothing was changed, try again$"):
        write_groups(store, 10_000)


def write_groups(store: SqliteStore, count: int) -> None:
    for number in range(count):
        commit(store, new_group(f"g{store.revision}-{number}"))


def check_is_whole(path: Path, store: SqliteStore, expected: dict[str, Any]) -> None:
    """The store, its file for whoever reads it now, and its change log hold what is ``expected`` and nothing of another change."""
    assert everything(State(store.load())) == expected
    assert everything(folded(store)) == expected
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert reader.execute("SELECT value FROM meta WHERE key = 'revision'").fetchone() == (str(expected["revision"]),)


@pytest.mark.parametrize("seed", range(4))
def test_a_change_without_room_is_refused_whole_and_tried_again_with_room_is_made(disk: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = disk / "secgroups.db"
    store = SqliteStore(path)
    commit(store, lambda tx: ops.ensure_default_group(tx, PROJECT))
    for round_number in range(3):
        # Room for some changes and a piece of the next, wherever that ends.
        fill(disk, chance.choice([0, 4_096, 40_000, 100_000]))
        write_until_full(store)
        held = everything(State(store.load()))
        results = store.commit([Pending(new_group("a")), Pending(new_group("default")), Pending(lambda tx: many_rules(tx, 1))])
        assert [type(each) for each in results] == [StoreUnavailableError] * 3
        check_is_whole(path, store, held)
        # What needs no room goes on: a refusal, a preview.
        (tried,) = store.commit([Pending(new_group("a"), validate_only=True)])
        assert not isinstance(tried, Exception)

        give_room(disk)
        before = store.revision
        assert commit(store, lambda tx, number=round_number: many_rules(tx, number)).revision == before + 1
        assert commit(store, new_group(f"after-{round_number}")).revision == before + 2
        check_is_whole(path, store, everything(State(store.load())))
    held = everything(State(store.load()))
    store.close()
    with closing(SqliteStore(path)) as again:
        check_is_whole(path, again, held)


async def test_the_core_goes_on_reading_and_goes_on_writing_with_room(disk: Path) -> None:
    core = Core(SqliteStore(disk / "secgroups.db"))
    told: list[int] = []
    core.listen(lambda changes: told.append(changes[0].revision))
    await core.change(new_group("before"))
    fill(disk, 0)
    refused = 0
    for number in range(100):
        try:
            await core.change(new_group(f"g{number}"))
        except StoreUnavailableError:
            refused += 1
    assert refused
    assert core.state.revision == 101 - refused
    assert len(list(core.state.groups(PROJECT))) == 102 - refused
    give_room(disk)
    assert (await core.change(new_group("after"))).revision == 102 - refused
    assert told == list(range(1, 103 - refused))
    await core.close()


def test_a_store_that_can_not_be_opened_for_want_of_room_is_named_and_left_as_it_is(disk: Path) -> None:
    path = disk / "secgroups.db"
    fill(disk, 0)
    with pytest.raises(StoreFileError, match=r"secgroups\.db can't be (written|opened)") as refused:
        SqliteStore(path)
    assert "\n" not in str(refused.value)
    give_room(disk)
    with closing(SqliteStore(path)) as store:
        commit(store, new_group("a"))
    fill(disk, 0)
    before = path.read_bytes()
    with pytest.raises(StoreFileError, match=r"secgroups\.db can't be (written|opened)"):
        SqliteStore(path)
    assert path.read_bytes() == before
    give_room(disk)
    with closing(SqliteStore(path)) as store:
        assert [group.name for group in State(store.load()).groups(PROJECT)] == ["default", "a"]


def test_a_disk_that_became_read_only_is_named(disk: Path) -> None:
    path = disk / "secgroups.db"
    with closing(SqliteStore(path)) as store:
        commit(store, new_group("a"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(StoreFileError, match="can't be written: Read-only file system"):
        SqliteStore(path)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    SqliteStore(path).close()


def test_a_controller_without_room_says_unavailable_and_serves_on(disk: Path, tmp_path: Path) -> None:
    arguments = ["secgroups.controller", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", str(disk)]
    process = Process(name="controller", arguments=arguments, ready_file=tmp_path / "ready", log_file=tmp_path / "log")
    process.start()
    try:
        with grpc.insecure_channel(process.address) as channel:
            groups = GroupServiceStub(channel)
            made = [create(groups, "before")]
            fill(disk, 0)
            error: Any = None
            for number in range(200):
                try:
                    made.append(create(groups, f"g{number}"))
                except grpc.RpcError as failed:
                    error = failed
                    break
            assert error is not None
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "the store can't be written now" in error.details()
            listed = groups.ListGroups(pb.ListGroupsRequest(project=PROJECT, page_size=1000), timeout=CALL_TIMEOUT_S)
            assert {group.id for group in listed.groups if group.name != "default"} == set(made)
            give_room(disk)
            made.append(create(groups, "after"))
            listed = groups.ListGroups(pb.ListGroupsRequest(project=PROJECT, page_size=1000), timeout=CALL_TIMEOUT_S)
            assert listed.revision == len(made)
    finally:
        process.stop()
    log = process.log_file.read_text()
    assert (log.count("store_write_failed"), log.count("store_write_recovered")) == (1, 1)
    assert "Traceback" not in log


def create(groups: Any, name: str) -> str:
    return str(groups.CreateGroup(pb.CreateGroupRequest(project=PROJECT, name=name), timeout=CALL_TIMEOUT_S).group.id)
