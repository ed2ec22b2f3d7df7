"""A file that can't be trusted or used is named in one line and left as it is; what is sound is opened as it was."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations
from store_world import PROJECT, allow, commit, everything, files, named_group, new_group, new_server

from secgroups.controller import operations as ops
from secgroups.controller.core import Core
from secgroups.controller.errors import StoreFileError, StoreUnavailableError
from secgroups.controller.state import State
from secgroups.controller.store.migrations import MIGRATIONS
from secgroups.controller.store.opening import begin_journal, open_writer, read_ahead
from secgroups.controller.store.sqlite import SqliteStore

Spoil = Callable[[Path], object]
PAGE_BYTES = 4096
NOBODY = 65_534


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a store that has a bit of everything and was closed."""
    path = tmp_path_factory.mktemp("sound") / "secgroups.db"
    with closing(SqliteStore(path, durable=False)) as store:
        for number in range(40):
            commit(store, new_group(f"g{number}"))
            commit(store, new_server(f"s{number}", f"10.0.0.{number}"))
        specs = [allow(port) for port in range(1, 100)]
        commit(store, lambda tx: ops.create_rules(tx, project=PROJECT, group_id=named_group(tx, "g7").id, specs=specs, bulk=True))
    assert not path.with_name("secgroups.db-wal").exists()
    return path.read_bytes()


def overwritten(at: int, data: bytes) -> Spoil:
    def spoil(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    return spoil


def cut_to(length: int) -> Spoil:
    return lambda path: os.truncate(path, length)


def edited(*statements: str) -> Spoil:
    """Do what an operator can do with SQLite's shell, where nothing guards references."""

    def spoil(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)

    return spoil


def replaced_by_tables_of_another(path: Path) -> None:
    path.unlink()
    edited("CREATE TABLE accounts (name TEXT)", "INSERT INTO accounts VALUES ('root')")(path)


def replaced_by_migrations_of_another(path: Path) -> None:
    path.unlink()
    others = Migrations("accounts")
    others(name="m001")(lambda db: db.execute("CREATE TABLE accounts (name TEXT)"))
    with closing(Database(str(path))) as database:
        others.apply(database)


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        ("is no SQLite database", lambda path: path.write_bytes(b"hello, this is no database at all" * 300)),
        ("is no SQLite database", lambda path: path.write_bytes(b"x")),
        ("is no SQLite database", overwritten(0, b"X")),
        ("is no SQLite database", overwritten(18, b"\xff" * 40)),
        ("is damaged", overwritten(PAGE_BYTES, b"\xff" * PAGE_BYTES)),
        ("is damaged", overwritten(9 * PAGE_BYTES, b"\0" * PAGE_BYTES)),
        ("is damaged", cut_to(100)),
        ("is damaged", cut_to(5 * PAGE_BYTES)),
        ("is damaged", cut_to(5 * PAGE_BYTES + 100)),
        ("newer program (schema step m999_x)", edited("INSERT INTO _sqlite_migrations VALUES (9, 'secgroups', 'm999_x', '')")),
        ("is a database of another program", replaced_by_tables_of_another),
        ("is a database of another program", replaced_by_migrations_of_another),
        ("is damaged ('revision')", edited("DELETE FROM meta WHERE key = 'revision'")),
        ("is damaged", edited("UPDATE meta SET value = 'many' WHERE key = 'revision'")),
        ("is damaged", edited("UPDATE meta SET value = 'last' WHERE key = 'last_id'")),
        ("is damaged (no such table: requests)", edited("DROP TABLE requests")),
        ("is damaged (no such table: rules)", edited("DROP TABLE rules")),
        ("is damaged (rules: 01", edited("DELETE FROM groups WHERE name = 'g7'")),
        ("is damaged (addresses: server p/s7 is gone", edited("DELETE FROM servers WHERE id = 's7'")),
        (
            "is damaged (attachments: server p/gone is gone",
            edited("INSERT INTO attachments SELECT project, 'gone', group_id FROM attachments WHERE server_id = 's7'"),
        ),
        (
            "is damaged (servers: p/s7: group gone is gone",
            edited("UPDATE attachments SET group_id = 'gone' WHERE server_id = 's7'"),
        ),
        ("is damaged (servers: p/s7: group_ids: must not be empty", edited("DELETE FROM attachments WHERE server_id = 's7'")),
        ("is damaged (servers: p/s7: addresses: must not be empty", edited("DELETE FROM addresses WHERE server_id = 's7'")),
        ("is damaged", edited("""UPDATE rules SET spec = '{"direction":' WHERE rowid = 7""")),
        ("is damaged (rules: 01", edited("UPDATE rules SET spec = spec || ' ' || spec WHERE rowid = 7")),
        ("is damaged (rules: 01", edited("UPDATE rules SET spec = replace(spec, 'EGRESS', 'SIDEWAYS') WHERE rowid = 7")),
        ("ports.first: is 77777", edited("UPDATE rules SET spec = replace(spec, '22', '77777') WHERE spec LIKE '%[22,22]%'")),
        ("its spec names group", edited("UPDATE rules SET remote_group_id = NULL WHERE remote_group_id IS NOT NULL")),
        (
            "group gone is gone",
            edited(
                "UPDATE rules SET spec = replace(spec, remote_group_id, 'gone'), remote_group_id = 'gone' "
                "WHERE remote_group_id IS NOT NULL"
            ),
        ),
        ("name: must not contain a slash", edited("UPDATE groups SET name = 'a/b' WHERE name = 'g7'")),
        ("'10.0.0.300' is no address", edited("UPDATE addresses SET address = '10.0.0.300' WHERE server_id = 's7'")),
        ("is damaged (servers: p/s7: ", edited("UPDATE addresses SET address = 'fe80::1::2' WHERE server_id = 's7'")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_file_that_can_not_be_trusted_is_named_and_left_as_it_is(
    path: Path, sound: bytes, words: str, spoil: Spoil
) -> None:
    path.write_bytes(sound)
    spoil(path)
    before = files(path.parent)
    with pytest.raises(StoreFileError) as refused:
        Core(SqliteStore(path))
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert files(path.parent) == before
    # Nobody holds on to it.
    path.write_bytes(sound)
    SqliteStore(path).close()


def test_a_sound_file_is_opened_as_it_was(path: Path, sound: bytes) -> None:
    path.write_bytes(sound)
    with closing(SqliteStore(path)) as store:
        state = State(store.load())
        assert (state.revision, len(list(state.groups(PROJECT))), len(list(state.servers(PROJECT)))) == (81, 41, 40)
        assert commit(store, new_group("one-more")).revision == 82


def test_what_is_read_ahead_is_in_memory_when_it_is_asked_for(path: Path) -> None:
    path.write_bytes(bytes(64 << 20))
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_in_memory(path):
        pytest.skip("this file system keeps all in memory")
    read_ahead(path)
    assert is_in_memory(path)


def is_in_memory(path: Path) -> bool:
    """Whether nothing of a file has to be waited for."""
    with path.open("rb") as file:
        try:
            return all(
                os.preadv(file.fileno(), [bytearray(1)], at, os.RWF_NOWAIT) for at in range(0, path.stat().st_size, PAGE_BYTES)
            )
        except BlockingIOError:
            return False


@pytest.mark.parametrize("table", [b"rules", b"tokens"])
def test_a_schema_that_is_no_text_is_told_as_damage(path: Path, sound: bytes, table: bytes) -> None:
    assert sound.count(b"CREATE TABLE " + table) == 1
    path.write_bytes(sound.replace(b"CREATE TABLE " + table, b"CREATE \xf8\xf8\xf8\xf8\xf8 " + table))
    with pytest.raises(StoreFileError, match="is damaged"):
        SqliteStore(path)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_never_ends_in_anything_but_a_refusal_or_a_store(path: Path, sound: bytes, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        path.write_bytes(sound)
        for _ in range(chance.choice([1, 1, 20])):
            at = chance.choice([chance.randrange(len(sound)), chance.randrange(len(sound)) // PAGE_BYTES * PAGE_BYTES])
            overwritten(at, chance.randbytes(chance.choice([1, 2, 8, 200])))(path)
        before = files(path.parent)
        try:
            store = SqliteStore(path, durable=False)
        except StoreFileError:
            assert files(path.parent) == before
            continue
        with closing(store):
            try:
                everything(State(store.load()))
                store.changes_since(0)
                commit(store, new_group("one-more"))
            except (StoreFileError, StoreUnavailableError):
                pass


@pytest.mark.parametrize("steps_are_counted", [False, True], ids=["empty", "only the table of steps"])
def test_a_first_start_that_was_cut_off_is_begun_again(path: Path, steps_are_counted: bool) -> None:
    path.touch()
    if steps_are_counted:
        with closing(Database(str(path))) as database:
            MIGRATIONS.ensure_migrations_table(database)
    with closing(SqliteStore(path)) as store:
        assert store.revision == 0
        assert commit(store, new_group("first")).revision == 1


def test_a_new_file_is_private_and_every_one_has_an_epoch_of_its_own(tmp_path: Path) -> None:
    epochs = set()
    for name in ("a.db", "b.db"):
        with closing(SqliteStore(tmp_path / name)) as store:
            epochs.add(store.store_epoch)
            commit(store, new_group("g"))
            assert {path.stat().st_mode & 0o777 for path in tmp_path.glob(f"{name}*")} == {0o600}
    assert len(epochs) == 2
    with closing(SqliteStore(tmp_path / "a.db")) as store:
        assert store.store_epoch in epochs


# Who may have it.


def test_one_store_at_a_time_has_a_file(path: Path, store: SqliteStore) -> None:
    with pytest.raises(StoreFileError, match=rf"is in use by another controller \(process {os.getpid()}\); stop that one"):
        SqliteStore(path)
    assert commit(store, new_group("unharmed")).revision == 1
    store.close()
    store.close()
    SqliteStore(path).close()


def test_a_file_that_another_program_has_locked_is_named(path: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secgroups.controller.store.opening.BUSY_TIMEOUT_MS", 50)
    path.write_bytes(sound)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreFileError, match="is locked by another program; close that one"):
            SqliteStore(path)
    SqliteStore(path).close()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Go without the rights of root, which reads and writes everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("words", "folder_mode", "file_mode"),
    [
        ("secgroups.db can't be opened: Permission denied", 0o777, 0o444),
        ("secgroups.db can't be opened: Permission denied", 0o777, 0o000),
        ("the data directory . can't be written: Permission denied", 0o555, 0o666),
    ],
)
def test_what_may_only_be_read_is_refused_at_once(
    path: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch, words: str, folder_mode: int, file_mode: int
) -> None:
    path.write_bytes(sound)
    before = files(path.parent)
    path.chmod(file_mode)
    path.parent.chmod(folder_mode)
    # The folders above are closed to nobody.
    monkeypatch.chdir(path.parent)
    with as_nobody(), pytest.raises(StoreFileError) as refused:
        SqliteStore(Path("secgroups.db"))
    assert words in str(refused.value)
    path.parent.chmod(0o700)
    path.chmod(0o600)
    assert files(path.parent) == before


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ("none does not exist or is no directory; make it first", "none/secgroups.db"),
        ("file does not exist or is no directory; make it first", "file/secgroups.db"),
        ("folder can't be opened: Is a directory", "folder"),
    ],
)
def test_a_path_that_can_not_be_is_named_and_nothing_is_made(tmp_path: Path, words: str, where: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreFileError, match=words):
        SqliteStore(tmp_path / where)
    assert {each.name for each in tmp_path.iterdir()} - {"folder.lock"} == {"file", "folder"}


@pytest.mark.parametrize(("synchronous", "durable"), [(2, True), (0, False)])
def test_a_commit_waits_for_the_disk_and_references_are_guarded(path: Path, synchronous: int, durable: bool) -> None:
    with closing(open_writer(path, durable=durable)) as connection:
        begin_journal(connection)
        settings = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "foreign_keys", "journal_mode")]
        assert settings == [synchronous, 1, "wal"]
