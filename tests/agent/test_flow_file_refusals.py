"""Which files of a flow table are refused, which are put aside, and what keeps an agent from starting."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from agent_world import ACK, CLIENT, DNS, SECOND, SSH, rule, tcp
from kept_world import BOOT_AT, FORMAT_AT, HEADER_BYTES, LAYOUT_AT, SEED_AT, TABLE_ID_AT, KeptWorld

from secgroups.agent import flow_names
from secgroups.agent.compiled_table import CompiledTable
from secgroups.agent.errors import ConfigError
from secgroups.agent.settings import EngineSettings

LOGIN = tcp(CLIENT, "10.0.0.9", 22)
TYPED = replace(LOGIN, tcp_flags=ACK)
# 10.0.0.9 as names have it.
ADDRESS = "00" * 10 + "ffff0a000009"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "flows"


# ------------------------------------------------------------------------------------------------ what is refused

Spoil = Callable[[Path], None]


def flipped(at: int) -> Spoil:
    return lambda file: change(file, at, lambda old: bytes([old[0] ^ 1]), 1)


def change(file: Path, at: int, new: Callable[[bytes], bytes], length: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(at)
        old = handle.read(length)
        handle.seek(at)
        handle.write(new(old))


def rehashed(at: int) -> Spoil:
    """Flip a bit of the header and make its checksum fit again."""

    def spoil(file: Path) -> None:
        flipped(at)(file)
        with file.open("rb") as handle:
            head = handle.read(144)
        change(file, 144, lambda _: zlib.crc32(head).to_bytes(4, "little"), 4)

    return spoil


def names_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.names")


def in_names(spoil: Callable[[bytes], bytes]) -> Spoil:
    return lambda file: void(names_of(file).write_bytes(spoil(names_of(file).read_bytes())))


def void(_: object) -> None: ...


def sealed(*entries: list[object]) -> bytes:
    return b"".join(sealed_line(json.dumps(entry, separators=(",", ":")).encode()) for entry in entries)


def sealed_line(line: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(line), line)


REFUSALS: list[tuple[str, Spoil]] = [
    ("is torn: it has no whole header", lambda file: os.truncate(file, 3)),
    ("is torn: it has no whole header", lambda file: os.truncate(file, 147)),
    ("is torn: it has no whole header", lambda file: change(file, 0, lambda old: bytes(len(old)), HEADER_BYTES)),
    ("is torn: 148 bytes of", lambda file: os.truncate(file, 148)),
    ("is torn", lambda file: os.truncate(file, file.stat().st_size - 1)),
    ("is torn", lambda file: os.truncate(file, file.stat().st_size + 1)),
    ("has format 0.", flipped(FORMAT_AT)),
    ("has format 1.", flipped(LAYOUT_AT)),
    ("the checksum of its header does not fit", flipped(SEED_AT)),
    ("the checksum of its header does not fit", flipped(SEED_AT + 63)),
    ("the checksum of its header does not fit", flipped(144)),
    ("is of another boot", rehashed(BOOT_AT)),
    ("has the names of another table", rehashed(TABLE_ID_AT)),
    ("has no names: No such file", lambda file: names_of(file).unlink()),
    ("has no names: Is a directory", lambda file: (names_of(file).unlink(), void(names_of(file).mkdir()))[1]),
    ("has damaged names", in_names(lambda names: b"")),
    ("has damaged names", in_names(lambda names: names[:20])),
    ("has damaged names", in_names(lambda names: b"[" * 100_000)),
    ("has damaged names", in_names(lambda names: names + b"00000000 []\n")),
    ("has damaged names", in_names(lambda names: names.replace(b"b-ssh", b"b-ssx"))),
    ("has damaged names", in_names(lambda names: names + sealed(["-r", 77]))),
    ("has damaged names", in_names(lambda names: names + sealed(["+s", 1 << 20, 1, "p/x"]))),
    ("has damaged names", in_names(lambda names: names + sealed(["+e", 9, 3, "00" * 16]))),
    ("has damaged names", in_names(lambda names: names + sealed(["+e", 9, 0, "00" * 15]))),
    ("has damaged names", in_names(lambda names: names + sealed(["?", 9]))),
    ("has damaged names", in_names(lambda names: names + sealed(["+r", flow_names.RULES_MAX, 9, "r", "g"]))),
    ("has damaged names", in_names(lambda names: names + sealed(["+r", 1 << 32, 9, "r", "g"]))),
    ("has damaged names", in_names(lambda names: names + sealed(["+r", 9, 1 << 32, "r", "g"]))),
    ("has damaged names", in_names(lambda names: names + sealed(["+r", 9, 9, "\ud800", "g"]))),
    ("has damaged names", in_names(lambda names: names + sealed(["+e", flow_names.ENDPOINTS_MAX, 0, "00" * 16]))),
    # As many characters as an address has, but blanks between the bytes count for nothing.
    ("has damaged names", in_names(lambda names: names + sealed(["+e", 9, 0, "00 " * 10 + "00"]))),
    ("has damaged names", in_names(lambda names: names + sealed(["+s", 9, flow_names.GENERATIONS, "p/x"]))),
    ("has damaged names: a server has two numbers", in_names(lambda names: names + sealed(["+s", 9, 1, "p/db"]))),
    ("has damaged names: a rule has two numbers", in_names(lambda names: names + sealed(["+r", 9, 9, "b-ssh", "db"]))),
    ("has damaged names: a handle has two numbers", in_names(lambda names: names + sealed(["+r", 9, 1, "r", "g"]))),
    ("has damaged names: a server's address has two numbers", in_names(lambda names: names + sealed(["+e", 9, 0, ADDRESS]))),
    ("has damaged names", in_names(lambda names: names + sealed_line(b"[" * 100_000))),
]


@pytest.mark.parametrize(("words", "spoil"), REFUSALS, ids=[f"{number} {words}" for number, (words, _) in enumerate(REFUSALS)])
def test_a_file_that_can_not_be_trusted_is_refused_and_begun_anew(file: Path, words: str, spoil: Spoil) -> None:
    world = KeptWorld(file, SSH)
    world.connect(LOGIN)
    held = world.down()
    spoil(file)
    if names_of(file).is_dir():
        with pytest.raises(ConfigError, match=r"flows\.names can't be written: Is a directory"):
            world.up(held)
        names_of(file).rmdir()
    world.up(held)
    if words != "has no names: Is a directory":
        assert words in world.table.refused
    assert len(world.table) == 0
    assert world.reasons(TYPED, LOGIN) == ["INVALID_STATE", "NEW"]
    world.reopen()
    assert (world.table.refused, world.table.dropped, world.reason(LOGIN).name) == ("", 0, "ESTABLISHED")


@pytest.mark.parametrize("bound", [{"flows_max": 65}, {"fragments_max": 17}, {"shards": 2}], ids=str)
def test_a_file_of_other_bounds_is_refused(file: Path, bound: dict[str, int]) -> None:
    world = KeptWorld(file, SSH)
    world.connect(LOGIN)
    world.reopen(**bound)
    assert "is for 64 flows, 16 fragments and 1 shards, wanted are" in world.table.refused
    assert world.reason(TYPED).name == "INVALID_STATE"


def test_an_incomplete_last_line_was_never_used(file: Path) -> None:
    world = KeptWorld(file, SSH)
    world.connect(LOGIN)
    held = world.down()
    with world.names.open("ab") as names:
        names.write(sealed(["-s", 0])[:-1])
    world.up(held)
    assert (world.table.refused, world.reason(TYPED).name) == ("", "ESTABLISHED")


def test_a_file_that_is_no_flow_table_is_put_aside_untouched(file: Path) -> None:
    for number in range(1, 6):
        file.write_bytes(b"dear diary %d" % number)
        world = KeptWorld(file, SSH)
        aside = file.with_name(f"flows.aside-{number}")
        assert world.table.refused == f"is no flow table; it was put aside as {aside}"
        assert aside.read_bytes() == b"dear diary %d" % number
        world.down()
    file.write_bytes(b"dear diary 6")
    with pytest.raises(ConfigError, match="is no flow table, and 5 such files are put aside already"):
        KeptWorld(file, SSH)
    assert file.read_bytes() == b"dear diary 6"


def test_an_empty_file_is_no_refusal_and_both_files_are_for_their_owner_alone(file: Path) -> None:
    file.touch(0o644)
    world = KeptWorld(file, SSH)
    assert world.table.refused == ""
    assert {stat.S_IMODE(each.stat().st_mode) for each in (file, world.names)} == {0o600}
    assert sorted(each.name for each in file.parent.iterdir()) == ["flows", "flows.names"]


# ------------------------------------------------------------------------------------------------ what keeps an agent from starting

CHILD = """
import sys
from pathlib import Path
from secgroups.agent.compiled_table import CompiledTable
from secgroups.agent.settings import EngineSettings
table = CompiledTable(EngineSettings(flows_max=64, fragments_max=16), 1, Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_file_has_one_agent_at_a_time_and_a_killed_one_leaves_no_lock(file: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"open\n"
            with pytest.raises(ConfigError, match=r"flows is in use by another agent$"):
                KeptWorld(file, SSH)
        finally:
            child.kill()
    assert KeptWorld(file, SSH).table.refused == ""


def fifo(file: Path) -> None:
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("words", "place", "prepare"),
    [
        ("can't be opened: No such file or directory", "none/flows", lambda file: None),
        ("can't be opened: Is a directory", "flows", lambda file: file.mkdir()),
        ("can't be opened: Not a directory", "flows/x", lambda file: file.parent.touch()),
        ("can't be opened: File name too long", "x" * 256, lambda file: None),
        ("is not a regular file", "flows", fifo),
        ("flows.names can't be written: Is a directory", "flows", lambda file: file.with_name("flows.names.new").mkdir()),
    ],
    ids=["no folder", "a folder", "below a file", "a long name", "a pipe", "no place for names"],
)
def test_a_place_where_no_table_can_be_is_one_clear_line(tmp_path: Path, words: str, place: str, prepare: Spoil) -> None:
    prepare(tmp_path / place)
    with pytest.raises(ConfigError) as refused:
        CompiledTable(EngineSettings(flows_max=64), SECOND, tmp_path / place)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_trusted(file: Path) -> None:
    file.touch()
    os.chown(file, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345, this agent runs as 0"):
        KeptWorld(file, SSH)


# ------------------------------------------------------------------------------------------------ no room


def fill(folder: Path) -> Path:
    """Leave no byte of room."""
    filling = folder / "filling"
    room = os.statvfs(folder)
    filling.write_bytes(bytes(room.f_bavail * room.f_frsize))
    assert not os.statvfs(folder).f_bavail
    return filling


def test_a_table_that_there_is_no_room_for_is_one_clear_line_and_takes_none(small_disk: Path) -> None:
    with pytest.raises(ConfigError, match=r"flows needs \d{8} bytes: No space left on device$"):
        KeptWorld(small_disk / "flows", flows_max=100_000)
    assert (small_disk / "flows").stat().st_size == 0
    # The neighbour for which there is.
    world = KeptWorld(small_disk / "flows", SSH)
    assert world.reason(LOGIN).name == "NEW"
    world.down()


def test_a_table_goes_on_at_a_start_that_finds_the_disk_full(small_disk: Path) -> None:
    world = KeptWorld(small_disk / "flows", SSH)
    world.connect(LOGIN)
    held = world.down()
    with world.names.open("ab") as names:
        names.write(b"00000000 a line that was cut o")
    filling = fill(small_disk)
    for _ in range(2):
        world.up(held)
        assert (world.table.refused, world.table.broken, world.reason(TYPED).name) == ("", "", "ESTABLISHED")
        held = world.down()
    filling.unlink()
    world.up(held)
    world.set_rules(SSH, DNS)
    held = world.down()
    world.up(held)
    assert (world.table.refused, world.reason(TYPED).name) == ("", "ESTABLISHED")
    world.down()


def test_names_of_a_new_table_for_which_there_is_no_room_are_one_clear_line(small_disk: Path) -> None:
    world = KeptWorld(small_disk / "flows", SSH)
    world.down()
    world.path.write_bytes(bytes(world.path.stat().st_size))
    filling = fill(small_disk)
    with pytest.raises(ConfigError, match=r"flows\.names can't be written: No space left on device$"):
        world.up(None)
    filling.unlink()
    world.up(None)
    world.down()


def test_names_that_can_not_be_written_later_give_the_file_up_and_change_no_verdict(small_disk: Path) -> None:
    world = KeptWorld(small_disk / "flows", SSH)
    world.connect(LOGIN)
    filling = fill(small_disk)
    world.set_rules(SSH, *(rule(f"n{number:0100}", SSH.direction, 6, number + 1000) for number in range(100)))
    assert world.table.broken == f"{small_disk}/flows.names can't be written: No space left on device"
    world.set_rules(SSH)
    assert world.reason(TYPED).name == "ESTABLISHED"
    held = world.down()
    filling.unlink()
    world.up(held)
    assert world.table.refused == "was given up by the process that had it: names could not be written"
    assert (world.reason(TYPED).name, world.table.broken) == ("INVALID_STATE", "")
    world.down()


def test_names_are_written_anew_when_many_lines_have_come(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_names, "LINES_MAX", 50)
    world = KeptWorld(file, SSH)
    world.connect(LOGIN)
    for number in range(100):
        world.bind(f"p/s{number}", "db", addresses=("10.9.9.9",))
        world.apply(removed_servers=(f"p/s{number}",))
        assert world.names.read_bytes().count(b"\n") < 60
    world.reopen()
    assert (world.table.refused, world.reason(TYPED).name) == ("", "ESTABLISHED")
