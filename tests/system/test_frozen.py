"""A controller or an agent that hangs: the others notice, go on, and have it back when it goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from running_system import System, frozen, wait_until

WEB = {"a1": "10.0.0.1", "a2": "10.0.0.2"}


@pytest.fixture(scope="module")
def shared(system: Callable[..., System]) -> System:
    return system("a1", "a2")


@pytest.fixture
def site(shared: System) -> System:
    """Each agent guards a server by its own name, which allows TCP 80."""
    shared.renew_project()
    group_id = shared.group("web", 80)
    for agent_id, address in WEB.items():
        shared.server(agent_id, address, agent_id, group_id)
    assert shared.wait_in_force().in_force
    return shared


def enforced(site: System, port: int = 80) -> list[str]:
    """Return what a new connection to a port gets at each agent."""
    return [site.decide(agent_id, agent_id, address, port) for agent_id, address in WEB.items()]


def test_agents_go_on_without_a_controller_that_hangs_say_how_long_and_are_back_when_it_goes_on(site: System) -> None:
    lost = len(site.logged("a1", "controller_lost"))
    assert site.decide("a1", "a1", WEB["a1"], 80, 50_000) == "NEW"
    with frozen(site.stack.controller):
        wait_until(lambda: len(site.logged("a1", "controller_lost")) > lost, "the agent gives it up")
        assert site.logged("a1", "controller_lost")[lost]["reason"] == "it has been silent for too long"
        stale = site.stats("a1")
        assert not stale.connected
        wait_until(lambda: site.stats("a1").staleness.ToMilliseconds() > stale.staleness.ToMilliseconds() + 100, "it grows stale")
        assert enforced(site) == ["NEW", "NEW"]
        assert site.decide("a1", "a1", WEB["a1"], 80, 50_000, "SYN,ACK") == "ESTABLISHED"
        # What is in force is known to come from before, not from a cache.
        assert not site.stats("a1").from_cache
    wait_until(lambda: all(site.agent_is_in_sync(agent_id) for agent_id in WEB), "both are back")
    site.attach("a1", site.group("ssh", 22))
    assert site.wait_in_force().in_force
    assert enforced(site, 22) == ["NEW", "NO_RULE"]
    assert site.decide("a1", "a1", WEB["a1"], 80, 50_000, "ACK") == "ESTABLISHED"
    assert site.stats("a1").connected


def test_agents_ask_for_a_controller_that_is_gone_for_as_long_as_it_takes(site: System) -> None:
    asked = len(site.logged("a1", "controller_not_reached"))
    site.stack.controller.kill()
    wait_until(lambda: len(site.logged("a1", "controller_not_reached")) >= asked + 20, "the agent asks on and on")
    assert enforced(site) == ["NEW", "NEW"]
    assert max(each["retry_s"] for each in site.logged("a1", "controller_not_reached")[asked:]) <= 0.2
    site.stack.controller.start()
    wait_until(lambda: all(site.agent_is_in_sync(agent_id) for agent_id in WEB), "both are back")
    site.attach("a2", site.group("ssh", 22))
    assert site.wait_in_force().in_force
    assert enforced(site, 22) == ["NO_RULE", "NEW"]


def test_an_agent_that_hangs_is_closed_with_a_reason_holds_up_nobody_and_is_right_when_it_goes_on(site: System) -> None:
    closed = len(site.logged("controller", "agent_disconnected"))
    shut = site.group("shut", 443)
    site.attach("a2", shut)
    assert site.wait_in_force().in_force
    with frozen(site.stack.agents["a2"]):
        site.attach("a1", site.group("ssh", 22))
        site.detach("a2", shut)
        # The other one hears at once, and of what comes after.
        wait_until(lambda: site.agent_is_in_sync("a1"), "the other one is up to date")
        assert site.decide("a1", "a1", WEB["a1"], 22) == "NEW"
        wait_until(lambda: not site.agent("a2").connected, "who says nothing is given up")
        (said,) = site.logged("controller", "agent_disconnected")[closed:]
        assert (said["agent_id"], said["reason"]) == ("a2", "nothing was acknowledged for 1.5 s")
        assert site.agent("a2").pending_revisions == 1
        site.attach("a1", site.group("more", 8443))
        wait_until(lambda: site.agent_is_in_sync("a1"), "the other one is up to date")
        assert site.decide("a1", "a1", WEB["a1"], 8443) == "NEW"
    wait_until(lambda: site.agent_is_in_sync("a2"), "it is back")
    assert (enforced(site), enforced(site, 443)) == (["NEW", "NEW"], ["NO_RULE", "NO_RULE"])
