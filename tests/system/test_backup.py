"""Backups made while others write, and put back: what was acknowledged before is there, and agents follow."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import grpc
import pytest

from secgroups.lab.stack import Process, Stack, environment_of
from secgroups.v1 import group_service_pb2 as groups
from secgroups.v1 import rule_service_pb2 as rules
from secgroups.v1 import ruleset_service_pb2 as rulesets
from secgroups.v1 import server_service_pb2 as servers
from secgroups.v1 import types_pb2 as types
from secgroups.v1 import verdict_service_pb2 as verdicts
from secgroups.v1.group_service_pb2_grpc import GroupServiceStub
from secgroups.v1.rule_service_pb2_grpc import RuleServiceStub
from secgroups.v1.ruleset_service_pb2_grpc import RulesetServiceStub
from secgroups.v1.server_service_pb2_grpc import ServerServiceStub
from secgroups.v1.verdict_service_pb2_grpc import VerdictServiceStub

TIMEOUT_S = 20.0
WRITERS = 4
BACKUPS = 5
MANY = {"SECGROUPS_CONTROLLER_GROUPS_PER_PROJECT": "100000"}


def sgctl(stack: Stack, *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "secgroups.cli", *arguments]
    done = subprocess.run(command, env=environment_of(stack, "p"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def restore(file: Path, folder: Path, *flags: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "secgroups.cli", "restore", str(file), "--data-dir", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def group_names(address: str) -> set[str]:
    found: set[str] = set()
    request = groups.ListGroupsRequest(project="p", page_size=1000)
    with grpc.insecure_channel(address) as channel:
        while True:
            page = GroupServiceStub(channel).ListGroups(request, timeout=TIMEOUT_S)
            found |= {group.name for group in page.groups}
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def controller_on(folder: Path, log: Path) -> Process:
    listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    return Process(
        name="controller",
        arguments=["secgroups.controller", "--data-dir", str(folder), *listen],
        ready_file=log.with_suffix(".ready"),
        log_file=log,
        environment={**os.environ, **MANY},
    )


def operator_of(process: Process, folder: Path) -> Stack:
    """Return what points sgctl at a controller that was not started by a stack."""
    stack = Stack(folder, [])
    stack.controller.address = process.address
    return stack


class Writers:
    """Create groups, one after another, until told to stop; ``acknowledged`` are the names of those that are made."""

    def __init__(self, address: str) -> None:
        self.acknowledged: set[str] = set()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(address, number)) for number in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _write(self, address: str, writer: int) -> None:
        with grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            stub = GroupServiceStub(channel)
            number = 0
            while not self._stopped.is_set():
                name = f"g-{writer}-{number}"
                stub.CreateGroup(groups.CreateGroupRequest(project="p", name=name), timeout=TIMEOUT_S)
                self.acknowledged.add(name)
                number += 1

    def wait_for(self, count: int) -> None:
        while len(self.acknowledged) < count:
            assert any(thread.is_alive() for thread in self._threads)
            self._stopped.wait(0.01)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)


def test_a_backup_under_load_has_all_that_was_acknowledged_before_it_and_is_one_revision(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    process = controller_on(tmp_path / "data", tmp_path / "log")
    process.start()
    try:
        stack = operator_of(process, tmp_path / "unused")
        writers = Writers(process.address)
        try:
            for number in range(BACKUPS):
                writers.wait_for(len(writers.acknowledged) + 30)
                before = set(writers.acknowledged)
                file = tmp_path / f"{number}.backup"
                revision = int(sgctl(stack, "backup", str(file)).split()[1])
                after = set(writers.acknowledged)
                assert file.stat().st_mode & 0o777 == 0o600
                with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as copied:
                    found = {row[0] for row in copied.execute("SELECT name FROM groups")}
                    assert copied.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                    # The counter, the log and the objects are of the same revision.
                    assert copied.execute("SELECT max(revision) FROM changes").fetchone() == (revision,)
                    assert copied.execute("SELECT max(revision) FROM groups").fetchone() == (revision,)
                assert before <= found
                assert len(found) <= len(after) + WRITERS + 1
        finally:
            writers.stop()
        assert not list((tmp_path / "data").glob("*.part*"))
    finally:
        process.stop()
    restored = tmp_path / "restored"
    assert f"at revision {revision}," in restore(file, restored, "--create")
    second = controller_on(restored, tmp_path / "second.log")
    second.start()
    try:
        assert group_names(second.address) == found
    finally:
        second.stop()


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
def test_agents_follow_a_store_that_was_put_back(tmp_path: Path, *, tls: bool) -> None:
    with Stack(tmp_path, ["a"], tls=tls) as stack:
        with stack.channel() as channel:
            create = groups.CreateGroupRequest(project="p", name="web")
            group_id = GroupServiceStub(channel).CreateGroup(create, timeout=TIMEOUT_S).group.id
            spec = types.RuleSpec(
                direction=types.DIRECTION_INGRESS,
                protocol=types.PROTOCOL_TCP,
                ports=types.PortRange(first=80),
                anywhere=types.Anywhere(),
            )
            add = rules.CreateRuleRequest(project="p", group_id=group_id, rule=spec)
            rule_id = RuleServiceStub(channel).CreateRule(add, timeout=TIMEOUT_S).rule.id
            place = servers.CreateServerRequest(project="p", id="s", addresses=["10.0.0.1"], agent_id="a", group_ids=[group_id])
            held = ServerServiceStub(channel).CreateServer(place, timeout=TIMEOUT_S).revision
            wait(channel, held)
            assert allows(stack)
            sgctl(stack, "backup", str(tmp_path / "backup"))
            assert "exists" in sgctl(stack, "backup", str(tmp_path / "backup"), status=2)
            delete = rules.DeleteRuleRequest(project="p", id=rule_id)
            gone = RuleServiceStub(channel).DeleteRule(delete, timeout=TIMEOUT_S).revision
            wait(channel, gone)
            assert not allows(stack)
        stack.controller.stop()
        told = restore(tmp_path / "backup", tmp_path / "controller")
        kept = Path(told.splitlines()[1].rpartition(" ")[2])
        with closing(sqlite3.connect(kept)) as old:
            assert old.execute("SELECT value FROM meta WHERE key = 'revision'").fetchone() == (str(gone),)
        # It comes back where agents know it.
        arguments = stack.controller.arguments
        arguments[arguments.index("--listen") + 1] = stack.controller.address
        if tls:
            arguments[arguments.index("--agent-listen") + 1] = stack.controller.agent_address
        stack.controller.start()
        with stack.channel() as channel:
            wait(channel, held)
            assert allows(stack)


def wait(channel: grpc.Channel, revision: int) -> None:
    request = rulesets.WaitForRevisionRequest(revision=revision)
    request.timeout.FromSeconds(15)
    assert RulesetServiceStub(channel).WaitForRevision(request, timeout=TIMEOUT_S).in_force


def allows(stack: Stack) -> bool:
    packet = verdicts.Packet(
        server="p/s",
        direction=types.DIRECTION_INGRESS,
        source="192.0.2.1",
        destination="10.0.0.1",
        protocol=types.PROTOCOL_TCP,
        source_port=40_000,
        destination_port=80,
        tcp_flags=[verdicts.TCP_FLAG_SYN],
    )
    with grpc.insecure_channel(stack.agents["a"].address) as channel:
        answer = VerdictServiceStub(channel).Decide(verdicts.DecideRequest(packet=packet), timeout=TIMEOUT_S)
    return bool(answer.action == types.ACTION_ALLOW)


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    with Stack(tmp_path / "source", []) as stack:
        sgctl(stack, "group", "create", "web")
        sgctl(stack, "backup", str(tmp_path / "backup"))
    return tmp_path / "backup"


def test_nothing_is_put_in_the_place_of_a_database_in_use(tmp_path: Path, backup: Path) -> None:
    with Stack(tmp_path / "target", []) as stack:
        assert "in use by another controller" in restore(backup, tmp_path / "target" / "controller", status=2)
        sgctl(stack, "group", "create", "still-there")
    assert not list((tmp_path / "target" / "controller").glob("*.part*"))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    spoilt = bytearray(content)
    for at in range(4096, len(spoilt), 512):
        spoilt[at] ^= 0xFF
    return bytes(spoilt)


def text(content: bytes) -> bytes:
    return b"text" * len(content)


@pytest.mark.parametrize(("said", "spoil"), [("damaged", cut), ("damaged", flipped), ("no SQLite database", text)])
def test_what_is_no_backup_is_refused_and_nothing_is_changed(
    tmp_path: Path, backup: Path, said: str, spoil: Callable[[bytes], bytes]
) -> None:
    backup.write_bytes(spoil(backup.read_bytes()))
    with Stack(tmp_path / "target", []) as stack:
        sgctl(stack, "group", "create", "held")
    folder = tmp_path / "target" / "controller"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".lock"}
    (line,) = restore(backup, folder, status=2).splitlines()
    assert said in line
    assert str(backup) in line
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".lock"} == before


def test_a_database_of_another_program_is_no_backup(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE things (id INTEGER)")
    assert "another program" in restore(file, tmp_path / "data", "--create", status=2)
    assert "is no file" in restore(tmp_path / "nothing", tmp_path / "data", status=2)
    assert "does not exist" in restore(file, tmp_path / "nowhere", status=2)


def test_a_backup_for_which_there_is_no_room_is_refused_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    folder = small_disk / "data"
    folder.mkdir()
    process = controller_on(folder, tmp_path / "log")
    process.start()
    try:
        stack = operator_of(process, tmp_path / "unused")
        sgctl(stack, "group", "create", "web")
        with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(b"x" * 4096):
                pass
        assert "make room" in sgctl(stack, "backup", str(tmp_path / "backup"), status=2)
        assert not (tmp_path / "backup").exists()
        assert not list(folder.glob("*.part*"))
        (small_disk / "filler").unlink()
        assert "revision" in sgctl(stack, "backup", str(tmp_path / "backup"))
    finally:
        process.stop()
