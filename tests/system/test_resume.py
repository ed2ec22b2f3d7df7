"""Agents and controller are restarted, killed, put back and moved: what is in force is right before, meanwhile and after."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread

import grpc
import pytest
from raw_agent import raw_agent
from running_system import System, frozen, is_running, thaw, wait_until

AGENTS = ("a1", "a2")
WEB = {"a1": "10.0.0.1", "a2": "10.0.0.2"}


@pytest.fixture(scope="module")
def shared(system: Callable[..., System]) -> System:
    return system(*AGENTS)


@pytest.fixture
def site(shared: System) -> System:
    """Each agent guards a server by its own name, which allows TCP 80; all run and have that in their caches."""
    for process in (shared.stack.controller, *shared.stack.agents.values()):
        if not is_running(process):
            process.start()
    shared.renew_project()
    group_id = shared.group("web", 80)
    revisions = {agent_id: shared.server(agent_id, WEB[agent_id], agent_id, group_id) for agent_id in AGENTS}
    assert shared.wait_in_force().in_force
    for agent_id, revision in revisions.items():
        wait_until(partial(shared.cached, agent_id, f"{shared.project}/{agent_id}"), "the caches are written")
        wait_until(partial(has_applied, shared, agent_id, revision), "and it is said that it is in force")
    return shared


def has_applied(site: System, agent_id: str, revision: int) -> bool:
    return any(each["revision"] >= revision for each in site.logged(agent_id, "ruleset_applied"))


def in_sync(site: System, *agent_ids: str) -> None:
    for agent_id in agent_ids or AGENTS:
        wait_until(partial(site.agent_is_in_sync, agent_id), f"{agent_id} is in sync")


def mode(site: System, agent_id: str) -> str:
    """Return how an agent was brought up to date on its latest stream."""
    return str(site.logged(agent_id, "controller_connected")[-1]["mode"]).removeprefix("SYNC_MODE_")


def applied(site: System, agent_id: str) -> int:
    """Return how many objects an agent has applied in all."""
    return sum(each["objects"] for each in site.logged(agent_id, "ruleset_applied"))


def enforced(site: System, port: int = 80) -> list[str]:
    """Return what a new connection to a port gets at each agent."""
    return [site.decide(agent_id, agent_id, WEB[agent_id], port) for agent_id in AGENTS]


@pytest.mark.parametrize(("end", "changed"), [("stop", False), ("kill", False), ("kill", True)])
def test_a_controller_that_is_restarted_finds_its_agents_and_they_what_has_changed(site: System, end: str, changed: bool) -> None:
    controller, told = site.stack.controller, {agent_id: applied(site, agent_id) for agent_id in AGENTS}
    assert [site.decide(each, each, WEB[each], 80, 50_000) for each in AGENTS] == ["NEW", "NEW"]
    if changed:
        # Acknowledged, and not seen by the agent: it is told of after the restart.
        with frozen(site.stack.agents["a2"]):
            site.attach("a2", site.group("ssh", 22))
            getattr(controller, end)()
    else:
        getattr(controller, end)()
    assert enforced(site) == ["NEW", "NEW"]
    controller.start()
    in_sync(site)
    assert enforced(site) == ["NEW", "NEW"]
    assert enforced(site, 22) == ["NO_RULE", "NEW" if changed else "NO_RULE"]
    # What they hold is gone on from: they are told what has changed, a server and its new group, and nothing else.
    if changed:
        wait_until(lambda: applied(site, "a2") > told["a2"], "it is said")
    assert [applied(site, agent_id) - told[agent_id] for agent_id in AGENTS] == [0, 2 if changed else 0]
    if not changed:
        assert [mode(site, agent_id) for agent_id in AGENTS] == ["RESUMED", "RESUMED"]
    # No flow was lost on the way.
    assert [site.decide(each, each, WEB[each], 80, 50_000, "SYN,ACK") for each in AGENTS] == ["ESTABLISHED", "ESTABLISHED"]


def test_an_agent_that_is_killed_enforces_its_cache_and_is_told_what_it_missed(site: System) -> None:
    a1, told = site.stack.agents["a1"], applied(site, "a1")
    a1.kill()
    site.attach("a1", site.group("ssh", 22))
    with frozen(site.stack.controller):
        a1.start()
        assert (enforced(site)[0], enforced(site, 22)[0]) == ("NEW", "NO_RULE")
        assert site.stats("a1").from_cache
    in_sync(site)
    assert (enforced(site), enforced(site, 22)) == (["NEW", "NEW"], ["NEW", "NO_RULE"])
    assert not site.stats("a1").from_cache
    wait_until(lambda: applied(site, "a1") > told, "it is said")
    assert (mode(site, "a1"), applied(site, "a1") - told) == ("RESUMED", 2)


def test_an_agent_that_nothing_concerned_starts_from_the_revision_at_which_it_was_stopped(site: System) -> None:
    """One that stayed where its last change was would be further back than the change log one day."""
    a1 = site.stack.agents["a1"]
    changed = site.logged("a1", "ruleset_applied")[-1]["revision"]
    revision = site.attach("a2", site.group("ssh", 22))
    assert revision > changed
    wait_until(lambda: site.agent("a1").applied_revision >= revision, "it has heard that nothing of it concerns it")
    a1.stop()
    a1.start()
    assert site.logged("a1", "agent_started")[-1]["revision"] >= revision
    assert site.logged("a1", "ruleset_applied")[-1]["revision"] == changed


def put_back(site: System, copy: Path) -> None:
    """Have the controller go on with a database that it had before."""
    site.stack.controller.kill()
    shutil.rmtree(site.folder / "controller")
    shutil.copytree(copy, site.folder / "controller")
    site.stack.controller.start()


def test_an_older_database_that_was_put_back_is_what_counts(site: System) -> None:
    """The agents don't see it happen: they hang meanwhile, and find a controller whose revision is lower, or already higher."""
    site.stack.controller.stop()
    copy = shutil.copytree(site.folder / "controller", site.folder / "copy")
    site.stack.controller.start()
    for more_changes in (0, 12):
        if more_changes:
            put_back(site, copy)
            in_sync(site)
        # What the copy lacks: a1 has one group more, the server of a2 has moved there.
        site.attach("a1", site.group("ssh", 22))
        site.move("a2", "a1")
        lost = site.revision()
        in_sync(site)
        assert site.decide("a2", "a2", WEB["a2"], 80) == "UNKNOWN_SERVER"
        with frozen(site.stack.agents["a1"]), frozen(site.stack.agents["a2"]):
            put_back(site, copy)
            assert site.revision() < lost
            # Other changes under the numbers of those that were lost.
            group_id = site.group("other")
            for number in range(more_changes):
                site.rule(group_id, 1000 + number)
            site.attach("a2", site.group("alternative", 443))
            assert (site.revision() > lost) is bool(more_changes)
        in_sync(site)
        assert (enforced(site), enforced(site, 22), enforced(site, 443)) == (["NEW"] * 2, ["NO_RULE"] * 2, ["NO_RULE", "NEW"])
        assert site.decide("a1", "a2", WEB["a2"], 80) == "UNKNOWN_SERVER"
        # Nothing that they were told after the copy was made can be gone on from.
        assert [mode(site, agent_id) for agent_id in AGENTS] == ["SNAPSHOT", "SNAPSHOT"]
        # And from there on as ever.
        site.attach("a1", site.group("late", 8443))
        assert site.wait_in_force().in_force
        assert enforced(site, 8443) == ["NEW", "NO_RULE"]


@contextmanager
def at_another_host(site: System, agent_id: str) -> Iterator[None]:
    """Run an agent's id from a folder that holds nothing, beside what there may be of it."""
    old = site.stack.agents[agent_id]
    state = site.folder / f"{agent_id}-elsewhere"
    state.mkdir()
    arguments = [str(state) if part == str(site.folder / agent_id) else part for part in old.arguments]
    new = type(old)("elsewhere", arguments, site.folder / "elsewhere.ready", site.folder / "elsewhere.log")
    new.start()
    site.stack.agents[agent_id] = new
    try:
        yield
    finally:
        new.stop()
        site.stack.agents[agent_id] = old
        shutil.rmtree(state)


def test_an_agent_id_can_move_to_another_host_and_back_while_its_old_one_hangs(site: System) -> None:
    old = site.stack.agents["a1"]
    said_before = len(site.log("a1"))
    old_boot_id = site.agent("a1").boot_id
    with frozen(old), at_another_host(site, "a1"):
        wait_until(lambda: site.agent("a1").boot_id != old_boot_id, "the new one is heard")
        in_sync(site)
        assert enforced(site) == ["NEW", "NEW"]
        boot_id = site.agent("a1").boot_id
        # The old host wakes up: it is told, goes on with what it has, and is not heard.
        thaw(old)
        wait_until(
            lambda: any("another start of agent a1" in each.get("reason", "") for each in site.log("a1")[said_before:]),
            "the old one is told why",
        )
        site.attach("a1", site.group("ssh", 22))
        assert site.wait_in_force().in_force
        assert enforced(site, 22) == ["NEW", "NO_RULE"]
        assert site.agent("a1").boot_id == boot_id
    # And back: the later start is the one that counts, with a cache that is behind.
    old.stop()
    old.start()
    in_sync(site)
    assert enforced(site, 22) == ["NEW", "NO_RULE"]


def test_a_start_after_the_clock_was_put_back_takes_over_from_what_is_left_of_the_one_before(site: System) -> None:
    a1 = site.stack.agents["a1"]
    a1.stop()
    # The start before this one was, by its clock, in a year from now, and nobody has closed its stream.
    then_ns = time.time_ns() + 365 * 86_400 * 10**9
    (site.folder / "a1" / "lock").write_bytes(b"%021d\n" % then_ns)
    with raw_agent(site, "a1", boot_time_ns=then_ns) as before:
        wait_until(lambda: site.agent("a1").boot_id == "b1", "the stream of the start before is open")
        a1.start()
        wait_until(lambda: site.agent("a1").boot_id != "b1", "the new start is heard")
        wait_until(lambda: bool(before.messages) and before.messages[-1].HasField("go_away"), "and the old one told so")
        assert "has taken over" in before.messages[-1].go_away.reason
        assert site.wait_in_force().in_force


class WriteLoad:
    """Changes a group that every agent has, as fast as the controller takes it and whether or not it is there."""

    def __init__(self, site: System, group_id: str) -> None:
        self.done = 0
        self._site, self._group_id = site, group_id
        self._ended = Event()
        self._thread = Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._site.replace_rules(self._group_id, *range(1000 + self.done % 7, 1010))
                self.done += 1
            except grpc.RpcError:
                time.sleep(0.02)

    def __enter__(self) -> WriteLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def goes_on(self) -> None:
        before = self.done
        wait_until(lambda: self.done > before + 5, "changes are made")


class Verdicts:
    """Asks every agent that is up, again and again, for verdicts that no change concerns; ``wrong`` are those that changed."""

    def __init__(self, site: System) -> None:
        self.asked = dict.fromkeys(AGENTS, 0)
        self.wrong: list[tuple[str, str, str]] = []
        self._site = site
        self._ended = Event()
        self._threads = [Thread(target=self._run, args=[agent_id]) for agent_id in AGENTS]

    def _run(self, agent_id: str) -> None:
        while not self._ended.is_set():
            try:
                got = [self._site.decide(agent_id, agent_id, WEB[agent_id], port) for port in (80, 22)]
            except grpc.RpcError:
                # It is down just now.
                time.sleep(0.02)
                continue
            self.asked[agent_id] += 1
            time.sleep(0.005)
            if got != ["NEW", "NO_RULE"]:
                self.wrong.append((agent_id, *got))

    def __enter__(self) -> Verdicts:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_restarts_of_everything_under_a_write_load_change_no_verdict_that_no_change_concerns(site: System) -> None:
    named = {"controller": site.stack.controller, **site.stack.agents}
    busy = site.group("busy", 1000)
    for agent_id in AGENTS:
        site.attach(agent_id, busy)
    assert site.wait_in_force().in_force
    with Verdicts(site) as verdicts, WriteLoad(site, busy) as load:
        load.goes_on()
        for process, end in (("a1", "stop"), ("controller", "stop"), ("a2", "kill"), ("controller", "kill"), ("a1", "kill")):
            getattr(named[process], end)()
            named[process].start()
            load.goes_on()
    site.replace_rules(busy, 4000)
    assert site.wait_in_force().in_force
    in_sync(site)
    assert [enforced(site, port) for port in (80, 1009, 4000)] == [["NEW"] * 2, ["NO_RULE"] * 2, ["NEW"] * 2]
    assert not verdicts.wrong
    assert all(verdicts.asked.values())
