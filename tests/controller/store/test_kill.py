"""Killed at any moment: what was acknowledged is there, nothing is there by half, and the revision never goes back."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import committing_child
import pytest
from store_world import PROJECT, commit, everything, folded

from secgroups.controller.errors import StoreFileError
from secgroups.controller.model import Rule
from secgroups.controller.state import State
from secgroups.controller.store.sqlite import SqliteStore

ROUNDS = 15
# About as long as a child needs from its start to its first change; some are killed before.
START_S = 0.4


class Child:
    """A child at work. ``lines`` are the changes that it has acknowledged so far."""

    def __init__(self, path: Path, seed: int) -> None:
        command = [sys.executable, committing_child.__file__, str(path), str(seed), f"m{seed}"]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.lines: list[dict[str, Any]] = []

    def read(self, count: int) -> None:
        """Wait for so many more lines."""
        assert self.popen.stdout is not None
        for _ in range(count):
            line = self.popen.stdout.readline()
            assert line.endswith(b"\n"), self.popen.communicate()[1].decode()
            self.lines.append(json.loads(line))

    def kill(self) -> None:
        """Kill it and take what it had still said."""
        self.popen.kill()
        rest, errors = self.popen.communicate()
        self.lines += [json.loads(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")]
        assert errors == b""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secgroups.db"


def test_a_killed_process_has_kept_all_that_it_acknowledged(path: Path) -> None:
    chance = Random(20240607)
    acknowledged: list[dict[str, Any]] = []
    revision, epochs = 0, set()
    for round_number in range(ROUNDS):
        child = Child(path, round_number)
        try:
            if round_number % 5 == 1:
                # At the start, wherever it is.
                time.sleep(chance.uniform(0, START_S))
            else:
                child.read(chance.randint(1, 150))
        finally:
            child.kill()
        acknowledged += child.lines
        check_file(path)
        with closing(SqliteStore(path, limits=committing_child.LIMITS)) as store:
            epochs.add(store.store_epoch)
            assert store.revision >= max([revision, *(line["revision"] for line in child.lines)])
            revision = store.revision
            check_log(store, acknowledged)
            check_repeats(store, child.lines)
            if round_number % 4 == 0 or round_number == ROUNDS - 1:
                assert everything(folded(store)) == everything(State(store.load()))
    assert len(epochs) == 1
    assert len(acknowledged) > 50 * ROUNDS / 2


def check_file(path: Path) -> None:
    if not path.exists():
        return
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def check_log(store: SqliteStore, acknowledged: list[dict[str, Any]]) -> None:
    """Every revision is there once and whole, with just the objects that whoever made it was told of."""
    changes = store.changes_since(0, 1_000_000).changes
    keys = {revision: [each.key for each in group] for revision, group in groupby(changes, key=lambda each: each.revision)}
    assert list(keys) == list(range(1, store.revision + 1))
    for line in acknowledged:
        if line["keys"]:
            assert sorted(keys[line["revision"]]) == line["keys"]
    # Also what nobody was told of is there whole or not at all.
    for _, group in groupby(changes, key=lambda each: each.revision):
        descriptions = [each.after.spec.description for each in group if isinstance(each.after, Rule)]
        counts = [int(text.rpartition("/")[2]) for text in descriptions if "/" in text]
        assert counts == [len(counts)] * len(counts)


def check_repeats(store: SqliteStore, lines: list[dict[str, Any]]) -> None:
    """Whoever asks again, because it may have missed the answer, gets that of the first time."""
    for line in lines[-20:]:
        if line["unit"]:
            again = commit(store, lambda tx: None, request=committing_child.request_key(line["unit"]))
            assert again.replayed == committing_child.said(line["unit"], None, line["revision"])


@pytest.fixture
def child(path: Path) -> Iterator[Child]:
    made = Child(path, 0)
    yield made
    made.kill()


def test_while_it_lives_nobody_else_may_open_its_file_and_once_it_is_dead_everybody(path: Path, child: Child) -> None:
    child.read(1)
    with pytest.raises(StoreFileError, match=rf"is in use by another controller \(process {child.popen.pid}\)"):
        SqliteStore(path)
    child.read(20)
    child.kill()
    with closing(SqliteStore(path)) as store:
        assert State(store.load()).group_by_name(PROJECT, "default") is not None
