"""A controller that comes back without its data does not disarm an agent that was told how much may go at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running_system import System, wait_until

WEB = "10.0.0.9"


@pytest.fixture(scope="module")
def shared(system: Callable[..., System]) -> System:
    site = system()
    site.stack.start_agent("a1", "--max-removal", "0.5")
    return site


@pytest.fixture
def site(shared: System) -> System:
    """Agent a1, with --max-removal 0.5, guards w1 and w2, which allow TCP 80; all of its servers are in one project."""
    shared.renew_project()
    group_id = shared.group("web", 80)
    shared.server("w1", WEB, "a1", group_id)
    shared.server("w2", "10.0.0.10", "a1", group_id)
    assert shared.wait_in_force().in_force
    wait_until(lambda: shared.cached("a1", f"{shared.project}/w2"), "the cache is written")
    return shared


def restart(site: System, *flags: str) -> None:
    """Restart the agent with these flags on top of those that it always has."""
    agent = site.stack.agents["a1"]
    agent.stop()
    at = agent.arguments.index("--listen") + 2
    agent.arguments[at:] = flags
    agent.start()


def lose_all(site: System) -> Path:
    """Have the controller begin anew with an empty database; return where the lost one is."""
    data, lost = site.folder / "controller", site.folder / "lost"
    site.stack.controller.stop()
    shutil.rmtree(lost, ignore_errors=True)
    data.rename(lost)
    data.mkdir()
    site.stack.controller.start()
    return lost


def bring_back(site: System, lost: Path) -> None:
    site.stack.controller.stop()
    shutil.rmtree(site.folder / "controller")
    lost.rename(site.folder / "controller")
    site.stack.controller.start()


def verdicts(site: System) -> tuple[str, str]:
    """Return what new connections get on ports 80 and 22."""
    return site.decide("a1", "w1", WEB, 80), site.decide("a1", "w1", WEB, 22)


def refusals(site: System) -> int:
    return sum("more than the share of 0.5" in each["reason"] for each in site.logged("a1", "controller_lost"))


def test_what_is_in_force_stays_it_is_said_once_and_a_repaired_controller_is_taken_up(site: System) -> None:
    revision, said_before, refused_before = site.revision(), len(site.logged("a1", "snapshot_held_back")), refusals(site)
    assert site.decide("a1", "w1", WEB, 80, 50_000) == "NEW"
    lost = lose_all(site)
    wait_until(lambda: refusals(site) >= refused_before + 3, "the agent has asked three times")
    assert verdicts(site) == ("NEW", "NO_RULE")
    assert site.decide("a1", "w1", WEB, 80, 50_000, "SYN,ACK") == "ESTABLISHED"
    (said,) = site.logged("a1", "snapshot_held_back")[said_before:]
    servers = site.stats("a1").servers
    assert (said["servers_removed"], said["servers_held"], said["max_removal"]) == (servers, servers, 0.5)
    assert "--max-removal" in said["advice"]
    told = site.stats("a1").held_back
    assert (told.servers_removed, told.servers_held, told.max_removal) == (servers, servers, 0.5)
    assert site.stats("a1").applied_revision == revision
    shown = site.agent("a1").held_back
    assert (shown.servers_removed, shown.servers_held, shown.max_removal) == (servers, servers, 0.5)

    # A kill does not let it pass either: what is in the cache counts as in force.
    site.stack.agents["a1"].kill()
    site.stack.agents["a1"].start()
    wait_until(lambda: len(site.logged("a1", "snapshot_held_back")) == said_before + 2, "the new process says so too")
    assert verdicts(site) == ("NEW", "NO_RULE")

    bring_back(site, lost)
    wait_until(lambda: site.agent("a1").connected, "the agent is back")
    site.attach("w1", site.group("ssh", 22))
    assert site.wait_in_force().in_force
    assert verdicts(site) == ("NEW", "NEW")
    assert not site.stats("a1").HasField("held_back")
    assert not site.agent("a1").HasField("held_back")
    assert site.logged("a1", "snapshot_no_longer_held_back")


def test_an_operator_who_restarts_the_agent_without_the_flag_lets_the_servers_go(site: System) -> None:
    said_before = len(site.logged("a1", "snapshot_held_back"))
    lose_all(site)
    wait_until(lambda: len(site.logged("a1", "snapshot_held_back")) > said_before, "it is held back")
    restart(site)
    wait_until(lambda: site.stats("a1").servers == 0, "nothing is guarded any more")
    assert verdicts(site) == ("UNKNOWN_SERVER", "UNKNOWN_SERVER")
    restart(site, "--max-removal", "0.5")


def test_servers_that_are_deleted_one_by_one_are_not_held_back(site: System) -> None:
    for server_id in ("w1", "w2"):
        site.delete_server(server_id)
    assert site.wait_in_force().in_force
    assert verdicts(site) == ("UNKNOWN_SERVER", "UNKNOWN_SERVER")
