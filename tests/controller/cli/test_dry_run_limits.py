"""``apply`` and its dry run know the limits of a project for the whole file, before the first change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from cli_world import Done, Sgctl

from secgroups.lab.stack import Stack

GROUPS_MAX, SERVERS_MAX = 4, 2
_PROJECTS = count(1)


@pytest.fixture(scope="module")
def small_controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a controller with small limits."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SECGROUPS_CONTROLLER_GROUPS_PER_PROJECT", str(GROUPS_MAX))
        environment.setenv("SECGROUPS_CONTROLLER_SERVERS_PER_PROJECT", str(SERVERS_MAX))
        with Stack(tmp_path_factory.mktemp("small"), []) as running:
            yield running.controller.address


@pytest.fixture
def small(small_controller: str, run_here: Callable[..., Done]) -> Sgctl:
    """The command line in a project that has group web, server w1, and of course the default group."""
    sgctl = Sgctl(run_here, small_controller, f"project-{next(_PROJECTS)}")
    sgctl.do("apply", "-f", "-", stdin=file(["web"], ["w1"]))
    return sgctl


def file(groups: list[str], servers: list[str], first: int = 1) -> str:
    """Return a manifest; the first server has the address 10.0.0.``first``."""
    listed = "".join(f"  {name}: {{}}\n" for name in groups) or "  {}\n"
    guarded = "".join(f"  {name}: {{addresses: [10.0.0.{number}]}}\n" for number, name in enumerate(servers, first)) or "  {}\n"
    return f"groups:\n{listed}servers:\n{guarded}"


@pytest.mark.parametrize(
    ("expected", "groups", "servers"),
    [
        ("", ["web", "a", "b"], ["w1", "w2"]),
        ("has 2 groups and would get 3 more, the most allowed is 4", ["web", "a", "b", "c"], ["w1"]),
        ("has 1 servers and would get 2 more, the most allowed is 2", ["web"], ["w1", "w2", "w3"]),
    ],
    ids=["up to the limits", "a group more", "a server more"],
)
def test_a_file_that_is_beyond_a_limit_as_a_whole_is_refused_before_the_first_change(
    small: Sgctl, expected: str, groups: list[str], servers: list[str]
) -> None:
    for dry in (["--dry-run"], []):
        before = small.do("export").out
        done = small("apply", "-f", "-", *dry, stdin=file(groups, servers))
        assert (done.status, expected in done.err) == (2 if expected else 0, True)
        if expected:
            assert (done.out, small.do("export").out) == ("", before)


def test_servers_that_go_make_room_for_those_that_come(small: Sgctl) -> None:
    small.do("apply", "-f", "-", stdin=file(["web"], ["w1", "w2"]))
    for dry in (["--dry-run"], []):
        small.do("apply", "-f", "-", "--prune", *dry, stdin=file(["web"], ["n1", "n2"], first=8))
    assert [line.split()[0] for line in small.do("server", "list").lines[1:]] == ["n1", "n2"]


def test_groups_go_last_and_make_no_room(small: Sgctl) -> None:
    for dry in (["--dry-run"], []):
        told = small.fail("apply", "-f", "-", "--prune", *dry, stdin=file(["a", "b", "c"], []))
        assert "would get 3 more, the most allowed is 4" in told
