"""An agent whose disk is full goes on: with what it is told, and with what it was told when it is started again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_system import System, fill, is_running, wait_until

WEB = "10.0.0.9"


@pytest.fixture(scope="module")
def shared(system: Callable[..., System]) -> System:
    return system()


@pytest.fixture
def site(shared: System, small_disk: Path) -> Iterator[System]:
    """Agent a1 has its folder on a small disk, and has saved there that w1 allows TCP 80."""
    if not is_running(shared.stack.controller):
        shared.stack.controller.start()
    shared.renew_project()
    shared.server("w1", WEB, "a1", shared.group("web", 80))
    (small_disk / "state").mkdir()
    (shared.folder / "a1").symlink_to(small_disk / "state")
    agent = shared.stack.start_agent("a1")
    try:
        assert shared.wait_in_force().in_force
        wait_until(lambda: saved(small_disk, f"{shared.project}/w1"), "the cache is written")
        yield shared
    finally:
        agent.stop()
        (shared.folder / "a1").unlink()


def saved(disk: Path, text: str) -> bool:
    cache = disk / "state" / "ruleset.cache"
    return cache.exists() and text.encode() in cache.read_bytes()


def verdicts(site: System) -> list[str]:
    """Return what new connections get on ports 80, 22 and 443."""
    return [site.decide("a1", "w1", WEB, port) for port in (80, 22, 443)]


def test_changes_are_in_force_and_saved_when_there_is_room_again_and_a_restart_finds_the_last_that_was(
    site: System, small_disk: Path
) -> None:
    agent, controller = site.stack.agents["a1"], site.stack.controller
    filling = fill(small_disk)
    whole = (small_disk / "state" / "ruleset.cache").read_bytes()
    for port in (22, 443):
        site.attach("w1", site.group(f"for-{port}", port))
        assert site.wait_in_force().in_force
    assert verdicts(site) == ["NEW", "NEW", "NEW"]
    wait_until(lambda: bool(site.logged("a1", "cache_not_written")), "it is said")
    assert site.logged("a1", "cache_not_written")[0]["reason"] == "No space left on device"

    # Killed while the disk is full: the old state is there, whole.
    assert (small_disk / "state" / "ruleset.cache").read_bytes() == whole
    controller.kill()
    agent.kill()
    agent.start()
    assert verdicts(site) == ["NEW", "NO_RULE", "NO_RULE"]
    controller.start()
    wait_until(lambda: verdicts(site) == ["NEW", "NEW", "NEW"], "what it missed is in force")
    assert [len(site.logged("a1", "cache_not_written")), len(site.logged("a1", "cache_set_aside"))] == [2, 0]

    filling.unlink()
    wait_until(lambda: saved(small_disk, "for-443"), "it is saved, without another change")
    wait_until(lambda: bool(site.logged("a1", "cache_written_again")), "and said so")
    controller.kill()
    agent.kill()
    agent.start()
    assert verdicts(site) == ["NEW", "NEW", "NEW"]


def test_a_log_that_can_not_be_written_ends_nothing(site: System, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, controller = site.stack.agents["a1"], site.stack.controller
    for process in (agent, controller):
        process.kill()
        monkeypatch.setattr(process, "log_file", small_disk / f"{process.name}.log")
        process.log_file.touch()
    fill(small_disk)
    for process in (controller, agent):
        process.start()
    for port in (22, 443):
        site.attach("w1", site.group(f"for-{port}", port))
        assert site.wait_in_force().in_force
    assert verdicts(site) == ["NEW", "NEW", "NEW"]
    controller.kill()
    wait_until(lambda: not site.stats("a1").connected, "the agent has noticed, and had something to say")
    assert verdicts(site) == ["NEW", "NEW", "NEW"]
    assert not agent.log_file.stat().st_size


def test_a_kept_flow_table_on_a_full_disk_is_gone_on_with(site: System, small_disk: Path) -> None:
    agent = site.stack.agents["a1"]
    agent.stop()
    agent.arguments += ["--flow-table", str(small_disk / "flows"), "--flows-max", "64"]
    agent.start()
    assert site.decide("a1", "w1", WEB, 80, 50_000) == "NEW"
    assert site.decide("a1", "w1", WEB, 80, 50_000, "SYN,ACK") == "ESTABLISHED"
    fill(small_disk)
    agent.kill()
    agent.start()
    assert site.decide("a1", "w1", WEB, 80, 50_000, "ACK") == "ESTABLISHED"
