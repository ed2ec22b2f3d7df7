"""What keeps a controller or an agent from starting: one line that names it, exit status 2, and nothing written or harmed."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secgroups.agent.cache import FILE_NAME, Cache, CachedState
from secgroups.agent.ruleset import Ruleset
from secgroups.lab.stack import Process

Spoil = Callable[[Path], None]

LATEST = "where id = (select max(id) from _sqlite_migrations)"

SPOILS: list[tuple[str, Spoil]] = [
    ("is no SQLite database", lambda file: file.write_bytes(b"hello, this is no database at all" * 300)),
    ("is damaged", lambda file: overwrite(file, at=4096, with_bytes=b"\xff" * 4096)),
    ("is damaged", lambda file: os.truncate(file, file.stat().st_size - 4096)),
    ("is damaged", lambda file: os.truncate(file, 5000)),
    ("newer", lambda file: change(file, f"update _sqlite_migrations set name = 'm9999_of_a_later_version' {LATEST}")),
]


def overwrite(file: Path, *, at: int, with_bytes: bytes) -> None:
    with file.open("r+b") as handle:
        handle.seek(at)
        handle.write(with_bytes)


def change(file: Path, sql: str) -> None:
    with sqlite3.connect(file) as database:
        database.execute(sql)
    database.close()


def refused(module: str, *arguments: str, **environment: str) -> str:
    """Start a process that must not start; return the one line it leaves."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def controller_arguments(data: Path) -> list[str]:
    return ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", str(data)]


def agent_arguments(state: Path) -> list[str]:
    return ["--agent-id", "a1", "--controller", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--state-dir", str(state)]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def stopped_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a controller that ran and was stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    process = controller_in(folder, folder)
    process.start()
    process.stop()
    assert process.popen is not None
    assert process.popen.returncode == 0, process.last_words()
    return (folder / "secgroups.db").read_bytes()


def controller_in(data: Path, folder: Path) -> Process:
    return Process(
        name="controller",
        arguments=["secgroups.controller", *controller_arguments(data)],
        ready_file=folder / "ready.json",
        log_file=folder / "log",
    )


@pytest.mark.parametrize(
    ("named", "arguments", "environment"),
    [
        (["data_dir", "--data-dir"], [], {}),
        (["--frobnicate"], ["--frobnicate", "1"], {}),
        (["--data-dri", "--data-dir"], ["--data-dri", "x"], {}),
        (["SECGROUPS_CONTROLLER_LISTN", "SECGROUPS_CONTROLLER_LISTEN"], [], {"SECGROUPS_CONTROLLER_LISTN": "127.0.0.1:0"}),
        (["SECGROUPS_CONTROLLER_DRAIN_S", "'soon'"], [], {"SECGROUPS_CONTROLLER_DRAIN_S": "soon"}),
        (["--rules-per-group", "many"], ["--rules-per-group", "many"], {}),
        (["rules_per_group", "0", "1 to"], ["--data-dir", "{folder}", "--rules-per-group", "0"], {}),
        (["log_level", "loud", "debug"], ["--data-dir", "{folder}", "--log-level", "loud"], {}),
        (["listen", "0.0.0.0:7700", "loopback"], ["--data-dir", "{folder}", "--listen", "0.0.0.0:7700"], {}),
        (["metrics_listen", "0.0.0.0:9464", "loopback"], ["--data-dir", "{folder}", "--metrics-listen", "0.0.0.0:9464"], {}),
        (["metrics_listen", "unix:x", "HOST:PORT"], ["--data-dir", "{folder}", "--metrics-listen", "unix:x"], {}),
        (["admin_listen", "[::]:1", "loopback"], ["--data-dir", "{folder}", "--admin-listen", "[::]:1"], {}),
        (["listen", "127.0.0.1:99999", "65535"], ["--data-dir", "{folder}", "--listen", "127.0.0.1:99999"], {}),
        (["heartbeat_s", "nan", "0.01"], ["--data-dir", "{folder}", "--heartbeat-s", "nan"], {}),
        (["{folder}/none", "does not exist"], ["--data-dir", "{folder}/none"], {}),
        (["{folder}/file", "not a directory"], ["--data-dir", "{folder}/file"], {}),
        # Where not even root can write.
        (["/proc", "can't be written"], ["--data-dir", "/proc"], {}),
        (["{folder}/none.toml", "can't be read"], ["--config", "{folder}/none.toml"], {}),
        (["unknown key frobnicate"], ["--config", "{folder}/unknown.toml"], {}),
        (["unknown key data_dri", "data_dir"], ["--config", "{folder}/typo.toml"], {}),
        (["calls_max", "'9'", "int"], ["--config", "{folder}/type.toml"], {}),
        (["broken.toml", "no TOML"], ["--config", "{folder}/broken.toml"], {}),
    ],
    ids=str,
)
def test_a_setting_that_can_not_work_keeps_the_controller_from_starting(
    tmp_path: Path, named: list[str], arguments: list[str], environment: dict[str, str]
) -> None:
    for name, text in (
        ("file", ""),
        ("unknown.toml", "frobnicate = 1\n"),
        ("typo.toml", 'data_dri = "x"\n'),
        ("type.toml", 'calls_max = "9"\n'),
        ("broken.toml", "= 1\n"),
    ):
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.iterdir())
    line = refused("secgroups.controller", *(each.format(folder=tmp_path) for each in arguments), **environment)
    for text in named:
        assert text.format(folder=tmp_path) in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("words", "spoil"), SPOILS, ids=["no database", "a page", "the end", "most of it", "newer"])
def test_a_database_that_can_not_be_trusted_is_named_and_left_as_it_is(
    tmp_path: Path, stopped_database: bytes, words: str, spoil: Spoil
) -> None:
    file = tmp_path / "secgroups.db"
    file.write_bytes(stopped_database)
    spoil(file)
    spoiled = file.read_bytes()
    line = refused("secgroups.controller", *controller_arguments(tmp_path))
    assert str(file) in line
    assert words in line
    assert file.read_bytes() == spoiled


def test_the_untouched_database_is_taken(tmp_path: Path, stopped_database: bytes) -> None:
    (tmp_path / "secgroups.db").write_bytes(stopped_database)
    process = controller_in(tmp_path, tmp_path)
    process.start()
    process.stop()
    assert process.popen is not None
    assert process.popen.returncode == 0, process.last_words()


def test_a_database_has_one_controller_at_a_time(tmp_path: Path) -> None:
    process = controller_in(tmp_path, tmp_path)
    process.start()
    try:
        assert process.popen is not None
        line = refused("secgroups.controller", *controller_arguments(tmp_path))
        assert "in use by another controller" in line
        assert str(process.popen.pid) in line
    finally:
        process.kill()
    # A crash leaves no lock behind.
    process.start()
    process.stop()


@pytest.mark.parametrize(
    ("module", "arguments"), [("secgroups.controller", controller_arguments), ("secgroups.agent", agent_arguments)]
)
def test_an_address_or_a_ready_file_that_can_not_be_made_is_named(
    tmp_path: Path, module: str, arguments: Callable[[Path], list[str]]
) -> None:
    good = arguments(tmp_path)
    long, none, file = f"{tmp_path}/{'x' * 107}", f"{tmp_path}/none/api.sock", tmp_path / "file"
    file.write_text("")
    for expected, flags in (
        (f"listen unix:{long}: the path has {len(long)} bytes, the most allowed is 107", ["--listen", f"unix:{long}"]),
        (f"listen unix:{none}: {tmp_path}/none is not a directory", ["--listen", f"unix:{none}"]),
        (f"listen unix:{file}: there is a file that is no socket", ["--listen", f"unix:{file}"]),
        (f"ready_file {none} can't be written: No such file or directory", ["--ready-file", none]),
    ):
        assert refused(module, *good, *flags) == f"error: {expected}\n"


@pytest.mark.parametrize("flag", ["--listen", "--admin-listen", "--metrics-listen"])
def test_a_port_in_use_is_named(tmp_path: Path, taken_port: int, flag: str) -> None:
    line = refused("secgroups.controller", *controller_arguments(tmp_path), flag, f"127.0.0.1:{taken_port}")
    assert f"127.0.0.1:{taken_port}" in line
    assert flag.removeprefix("--").replace("-", "_") in line


@pytest.mark.parametrize(
    ("named", "arguments", "environment"),
    [
        (["agent_id"], ["--agent-id", ""], {}),
        (["agent_id", "128"], ["--agent-id", "x" * 129], {}),
        (["agent_id"], ["--agent-id", "a/b"], {}),
        (["--frobnicate"], ["--frobnicate", "1"], {}),
        (["--state-dri", "--state-dir"], ["--state-dri", "x"], {}),
        (["SECGROUPS_AGENT_FLOWS"], [], {"SECGROUPS_AGENT_FLOWS": "9"}),
        (["SECGROUPS_AGENT_FLOWS_MAX", "'many'"], [], {"SECGROUPS_AGENT_FLOWS_MAX": "many"}),
        (["flows_max", "3", "4..67108864"], ["--flows-max", "3"], {}),
        (["listen", "0.0.0.0:7710", "loopback"], ["--listen", "0.0.0.0:7710"], {}),
        (["controller", "nowhere"], ["--controller", "nowhere"], {}),
        (["{folder}/none", "does not exist; make it"], ["--state-dir", "{folder}/none"], {}),
        (["{folder}/file", "not a directory"], ["--state-dir", "{folder}/file"], {}),
        (["state_dir", "File name too long"], ["--state-dir", "{folder}/" + "x" * 256], {}),
        (["state_dir", "/proc", "can't be written"], ["--state-dir", "/proc"], {}),
        (["flow_table {folder}/none/f", "No such file"], ["--flow-table", "{folder}/none/f"], {}),
        (["flow_table {folder} can't be opened: Is a directory"], ["--flow-table", "{folder}"], {}),
        (["flow_table /dev/null is not a regular file"], ["--flow-table", "/dev/null"], {}),
        (["flow_table /proc/f can't be opened"], [], {"SECGROUPS_AGENT_FLOW_TABLE": "/proc/f"}),
        (["max_removal 0.0", "above 0 and at most 1"], ["--max-removal", "0"], {}),
        (["max_removal 1.1", "above 0 and at most 1"], [], {"SECGROUPS_AGENT_MAX_REMOVAL": "1.1"}),
        (["max_removal nan", "above 0 and at most 1"], ["--max-removal", "nan"], {}),
        (["metrics_listen", "0.0.0.0:9465", "loopback"], ["--metrics-listen", "0.0.0.0:9465"], {}),
        (["reconnect_min_s", "9", "2"], ["--reconnect-min-s", "9", "--reconnect-max-s", "2"], {}),
        (["{folder}/none.toml", "can't be read"], ["--config", "{folder}/none.toml"], {}),
        (["unknown key frobnicate"], ["--config", "{folder}/unknown.toml"], {}),
        (["flows_max", "'9'", "int"], ["--config", "{folder}/type.toml"], {}),
    ],
    ids=str,
)
def test_a_setting_that_can_not_work_keeps_the_agent_from_starting(
    tmp_path: Path, named: list[str], arguments: list[str], environment: dict[str, str]
) -> None:
    for name, text in (("file", ""), ("unknown.toml", "frobnicate = 1\n"), ("type.toml", 'flows_max = "9"\n')):
        (tmp_path / name).write_text(text)
    good = agent_arguments(tmp_path)
    line = refused("secgroups.agent", *good, *(each.format(folder=tmp_path) for each in arguments), **environment)
    for text in named:
        assert text.format(folder=tmp_path) in line


def test_an_agent_names_the_port_in_use_and_the_folder_of_another(tmp_path: Path, taken_port: int) -> None:
    line = refused("secgroups.agent", *agent_arguments(tmp_path), "--listen", f"127.0.0.1:{taken_port}")
    assert f"127.0.0.1:{taken_port}" in line
    process = Process(
        name="agent",
        arguments=["secgroups.agent", *agent_arguments(tmp_path)],
        ready_file=tmp_path / "ready.json",
        log_file=tmp_path / "log",
    )
    process.start()
    try:
        line = refused("secgroups.agent", *agent_arguments(tmp_path))
        assert f"{tmp_path} is in use by another agent" in line
    finally:
        process.stop()


def test_a_saved_state_of_another_agent_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "a2")
    cache.save(CachedState(store_epoch="e", ruleset=Ruleset(revision=1)))
    cache.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    line = refused("secgroups.agent", *agent_arguments(tmp_path))
    for text in (str(tmp_path / FILE_NAME), "is of agent a2, this is a1", "agent_id"):
        assert text in line
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert not list(tmp_path.glob("*.damaged-*"))
