"""A damaged cache is set aside and said so; the agent starts empty and never with a part of it. A good one is left where it is."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from secgroups.agent.cache import DAMAGED_MAX, FILE_NAME, Cache, CachedState
from secgroups.agent.errors import ConfigError
from secgroups.agent.process import load
from secgroups.agent.ruleset import AddressSet, Ruleset, ServerBinding

# Where the header says of which format the file is; see the docstring of ``secgroups.agent.cache``.
FORMAT_VERSION = slice(8, 12)

STATE = CachedState(
    store_epoch="e",
    ruleset=Ruleset(
        revision=7,
        sets={"g": AddressSet(group_id="g", version=3, members=frozenset([ip_address("10.0.0.1")]))},
        servers={"p/s": ServerBinding(server="p/s", version=5, addresses=frozenset([ip_address("10.0.0.9")]), group_ids=("g",))},
    ),
)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    """The cache of agent a, with something in it."""
    made = Cache(tmp_path, "a")
    made.save(STATE)
    yield made
    made.close()


def file_of(cache: Cache) -> Path:
    return cache.folder / FILE_NAME


def refused(cache: Cache, agent_id: str = "a") -> str:
    """Load a cache that can't be used; return why, after a look that it was set aside as it was."""
    spoiled = file_of(cache).lstat().st_ino
    with capture_logs() as lines:
        assert load(cache, agent_id) is None
    (line,) = lines
    assert (line["event"], line["agent_id"]) == ("cache_set_aside", agent_id)
    assert Path(line["file"]).lstat().st_ino == spoiled
    with capture_logs() as lines:
        assert load(cache, agent_id) is None, "nothing is left in its place"
    assert not lines
    return str(line["reason"])


def test_a_good_one_is_loaded_as_it_was_saved(cache: Cache) -> None:
    assert load(cache, "a") == STATE


@pytest.mark.parametrize("timeline_id", ["", "0f8fad5b-d9cb-469f-a165-70867728950e"])
def test_the_timeline_is_kept_and_a_file_without_one_is_as_good(cache: Cache, timeline_id: str) -> None:
    state = replace(STATE, timeline_id=timeline_id)
    cache.save(state)
    assert load(cache, "a") == state


def test_a_bit_that_flipped_anywhere_is_noticed(cache: Cache) -> None:
    good = file_of(cache).read_bytes()
    # A file that says that it is of another format is taken at its word, below.
    for at in set(range(len(good))) - set(range(FORMAT_VERSION.start, FORMAT_VERSION.stop)):
        for bit in range(8):
            file_of(cache).write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
            assert refused(cache).startswith(str(file_of(cache))), (at, bit)


def test_one_that_was_cut_off_anywhere_or_goes_on_is_noticed(cache: Cache) -> None:
    good = file_of(cache).read_bytes()
    for content in [*(good[:length] for length in range(len(good))), good + b"x", good + good]:
        file_of(cache).write_bytes(content)
        assert "is torn" in refused(cache), len(content)


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "something").touch()


def a_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


@pytest.mark.parametrize(
    ("expected", "spoil"),
    [
        ("is not a cache of an agent", zeros),
        ("can't be read: Is a directory", a_directory),
        ("can't be read: Too many levels of symbolic links", a_loop),
    ],
)
def test_what_is_no_cache_of_this_agent_is_told(cache: Cache, expected: str, spoil: Callable[[Path], None]) -> None:
    spoil(file_of(cache))
    assert f"{file_of(cache)} {expected}" in refused(cache)
    # And there is a place for what comes next.
    cache.save(STATE)
    assert load(cache, "a") == STATE


def other_format(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:8] + b"\xff" + content[9:])


def of_another_agent(file: Path) -> None:
    file.rename(file.parent / "elsewhere")
    (file.parent / "b").mkdir()
    other = Cache(file.parent / "b", "b")
    other.save(STATE)
    file_of(other).rename(file)
    other.close()


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        ("has format version 255, this agent reads 1; start the version of the agent that wrote it, or move", other_format),
        ("is of agent b, this is a; correct agent_id or state_dir, or move", of_another_agent),
    ],
)
def test_a_good_one_that_is_not_for_this_start_keeps_the_agent_from_starting_and_is_left_as_it_is(
    cache: Cache, expected: str, change: Callable[[Path], None]
) -> None:
    change(file_of(cache))
    before, names = file_of(cache).read_bytes(), os.listdir(cache.folder)
    with pytest.raises(ConfigError) as told:
        load(cache, "a")
    assert f"{file_of(cache)} {expected}" in str(told.value)
    assert (file_of(cache).read_bytes(), os.listdir(cache.folder)) == (before, names)


def test_one_that_can_not_be_read_for_a_while_is_left_as_it_is(cache: Cache) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ConfigError) as told:
            load(cache, "a")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert f"{file_of(cache)} can't be read: Too many open files; it is left as it is" in str(told.value)
    assert load(cache, "a") == STATE


def test_of_many_the_latest_are_kept_whatever_they_are(cache: Cache) -> None:
    """A directory can't be renamed over a file, nor a file over a directory."""
    for number in range(3 * DAMAGED_MAX):
        if number % 2:
            a_directory(file_of(cache))
        else:
            zeros(file_of(cache))
        refused(cache)
        cache.save(STATE)
    assert len(list(cache.folder.glob("*.damaged-*"))) == DAMAGED_MAX
    assert load(cache, "a") == STATE
