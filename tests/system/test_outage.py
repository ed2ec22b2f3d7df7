"""Agents enforce the last good state whatever happens to the controller, and come back to it by themselves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running_system import System, wait_until

WEB = "10.0.0.9"
Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def shared(system: Callable[..., System]) -> System:
    return system("a1")


@pytest.fixture
def site(shared: System) -> System:
    """Both processes run; server w1 of agent a1 allows TCP 80 from anywhere, and that is in force."""
    shared.renew_project()
    guard_web_server(shared)
    return shared


def guard_web_server(site: System) -> None:
    site.server("w1", WEB, "a1", site.group("web", 80))
    assert site.wait_in_force().in_force


def enforced(site: System) -> tuple[str, str]:
    """Return what new connections to ports 80 and 22 get."""
    return site.decide("a1", "w1", WEB, 80), site.decide("a1", "w1", WEB, 22)


def test_a_killed_controller_changes_no_verdict_and_what_it_acknowledged_is_in_force_when_it_is_back(site: System) -> None:
    assert site.decide("a1", "w1", WEB, 80, 50_000) == "NEW"
    site.stack.controller.kill()
    assert enforced(site) == ("NEW", "NO_RULE")
    assert site.decide("a1", "w1", WEB, 80, 50_000, "SYN,ACK") == "ESTABLISHED"
    site.stack.controller.start()
    group_id = site.group("ssh", 22)
    site.attach("w1", group_id)
    assert site.wait_in_force().in_force
    assert enforced(site) == ("NEW", "NEW")
    # The connection that was there before the crash went on through it all.
    assert site.decide("a1", "w1", WEB, 80, 50_000, "ACK") == "ESTABLISHED"


def test_changes_acknowledged_just_before_the_crash_are_there_after_it(site: System) -> None:
    rule_id = site.rule(site.group("late"), 443)
    site.stack.controller.kill()
    site.stack.controller.start()
    assert site.delete_rule(rule_id) == site.revision()


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_an_agent_that_starts_without_a_controller_enforces_what_it_knew(site: System, end: str) -> None:
    wait_until(lambda: site.cached("a1", f"{site.project}/w1"), "the cache is written")
    site.stack.controller.kill()
    getattr(site.stack.agents["a1"], end)()
    site.stack.agents["a1"].start()
    assert enforced(site) == ("NEW", "NO_RULE")
    site.stack.controller.start()
    site.delete_rule(site.rule(site.group("other"), 1))
    wait_until(lambda: site.agent("a1").connected, "the agent is back")
    assert site.wait_in_force().in_force


def written(made: Callable[[bytes], bytes]) -> Spoil:
    def spoil(cache: Path) -> None:
        cache.write_bytes(made(cache.read_bytes()))

    return spoil


def a_directory(cache: Path) -> None:
    cache.unlink()
    cache.mkdir()
    (cache / "something").touch()


def a_loop(cache: Path) -> None:
    """Nobody can read it, not even root."""
    cache.unlink()
    cache.symlink_to(cache)


# One of each kind; tests/agent/test_damaged_cache.py has all the others.
SPOILS: list[tuple[str, Spoil]] = [
    ("is torn", written(lambda cache: cache[: len(cache) // 2])),
    ("is damaged: its checksum does not fit", written(lambda cache: cache[:-1] + bytes([cache[-1] ^ 1]))),
    ("can't be read: Is a directory", a_directory),
    ("can't be read: Too many levels of symbolic links", a_loop),
]


def test_a_damaged_cache_is_set_aside_and_never_used_in_part(site: System) -> None:
    agent, cache = site.stack.agents["a1"], site.folder / "a1" / "ruleset.cache"
    site.stack.controller.kill()
    agent.stop()
    good = cache.read_bytes()
    for words, spoil in SPOILS:
        cache.write_bytes(good)
        spoil(cache)
        spoiled = cache.lstat().st_ino
        agent.start()
        assert enforced(site) == ("UNKNOWN_SERVER", "UNKNOWN_SERVER"), words
        said = site.logged("a1", "cache_set_aside")[-1]
        assert f"{cache} {words}" in said["reason"]
        assert Path(said["file"]).lstat().st_ino == spoiled
        assert not cache.is_symlink()
        assert not cache.exists()
        agent.kill()
    assert len(site.logged("a1", "cache_set_aside")) == len(SPOILS)
    agent.start()
    site.stack.controller.start()
    wait_until(lambda: enforced(site) == ("NEW", "NO_RULE"), "what the controller says is in force")
    wait_until(lambda: site.cached("a1", f"{site.project}/w1"), "the cache is written anew")


def test_the_good_cache_is_used_again(site: System) -> None:
    """The neighbour of those above: nothing is set aside, and a half-written one beside it does no harm."""
    agent = site.stack.agents["a1"]
    before = len(site.logged("a1", "cache_set_aside"))
    site.stack.controller.kill()
    agent.stop()
    (site.folder / "a1" / "ruleset.cache.new").write_bytes(b"SECGRPAG, and then the power went")
    agent.start()
    assert enforced(site) == ("NEW", "NO_RULE")
    assert len(site.logged("a1", "cache_set_aside")) == before
    site.stack.controller.start()
    wait_until(lambda: site.agent("a1").connected, "the agent is back")


def test_a_database_of_another_epoch_is_taken_on_whole(system: Callable[..., System]) -> None:
    """One that begins anew, with lower revisions than the agent has seen."""
    site = system("a1")
    guard_web_server(site)
    site.rule(site.group("more", 1, 2, 3, 4, 5, 6), 7)
    site.stack.controller.stop()
    shutil.rmtree(site.folder / "controller")
    (site.folder / "controller").mkdir()
    site.stack.controller.start()
    wait_until(
        lambda: enforced(site) == ("UNKNOWN_SERVER", "UNKNOWN_SERVER"), "the agent guards what the new database says: nothing"
    )
    site.server("w1", WEB, "a1", site.group("web", 22))
    assert site.wait_in_force().in_force
    assert enforced(site) == ("NO_RULE", "NEW")


def test_of_two_agents_with_one_id_the_newer_is_heard_and_the_older_says_so(system: Callable[..., System]) -> None:
    site = system("a1")
    guard_web_server(site)
    older = site.stack.agents["a1"]
    state = site.folder / "twin"
    state.mkdir()
    twin = type(older)(
        name="twin",
        arguments=[str(state) if part == str(site.folder / "a1") else part for part in older.arguments],
        ready_file=site.folder / "twin.ready",
        log_file=site.folder / "twin.log",
    )
    before = site.agent("a1").boot_id
    twin.start()
    try:
        wait_until(lambda: site.agent("a1").connected and site.agent("a1").boot_id != before, "the newer one is heard")
        wait_until(
            lambda: any("another start of agent a1" in each["reason"] for each in site.logged("a1", "controller_lost")),
            "the older one is told why",
        )
        newer = site.agent("a1").boot_id
        assert site.decide("a1", "w1", WEB, 80) == "NEW", "the older one goes on with what it has"
        site.delete_rule(site.rule(site.group("other"), 1))
        assert site.agent("a1").boot_id == newer
    finally:
        twin.stop()
