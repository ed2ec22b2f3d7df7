"""Tests of the API as a client sees it: a real controller process on loopback, a real database file, a project for each test."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from api_world import Api, Target

from secgroups.lab.stack import Process

_PROJECTS = itertools.count(1)


def _controller(folder: Path, *more: str) -> Iterator[Target]:
    arguments = [
        "secgroups.controller",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--data-dir",
        str(folder),
        *more,
    ]
    process = Process(name="controller", arguments=arguments, ready_file=folder / "ready", log_file=folder / "log")
    process.start()
    yield Target(process.address, process.admin_address)
    process.stop()
    assert process.popen is not None
    assert process.popen.returncode == 0, process.last_words()
    assert "rpc_crashed" not in process.log_file.read_text()


@pytest.fixture(scope="session")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A controller with the limits that it comes with."""
    yield from _controller(tmp_path_factory.mktemp("controller"))


@pytest.fixture(scope="session")
def small_controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A controller with small limits."""
    limits = {
        "groups-per-project": 3,
        "rules-per-group": 4,
        "groups-per-server": 2,
        "servers-per-project": 2,
        "addresses-per-server": 2,
    }
    flags = [word for name, most in limits.items() for word in (f"--{name}", str(most))]
    yield from _controller(tmp_path_factory.mktemp("small"), *flags)


def _api(target: Target) -> Iterator[Api]:
    made = Api(target, f"project-{next(_PROJECTS)}")
    yield made
    made.close()


@pytest.fixture
def api(controller: Target) -> Iterator[Api]:
    """A project that nobody has used."""
    yield from _api(controller)


@pytest.fixture
def other(controller: Target) -> Iterator[Api]:
    """Another such project of the same controller."""
    yield from _api(controller)


@pytest.fixture
def small(small_controller: Target) -> Iterator[Api]:
    """A project that nobody has used, of the controller with small limits."""
    yield from _api(small_controller)


@pytest.fixture
def stocked(api: Api, other: Api) -> Api:
    """A project with groups ``$web`` and ``$db``, rules ``$ssh`` (web) and ``$mysql`` (db, from web), servers w1 and d1."""
    web, db = api.group("web"), api.group("db")
    api.names["ssh"] = api.rule(web).id
    api.names["mysql"] = api.rule(db, ports={"first": 3306, "last": 3306}, cidr=None, group_id=web).id
    api.server("w1", "10.0.0.1", "2001:db8::1", groups=(web,), agent_id="a1")
    api.server("d1", "10.0.0.2", groups=(db,))
    api.names["default"] = api.default_id()
    api.names["theirs"] = other.group("theirs")
    api.names["their_rule"] = other.rule(api.names["theirs"]).id
    other.server("x1", "10.0.0.1")
    return api
