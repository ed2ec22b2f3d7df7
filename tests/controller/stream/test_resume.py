"""How a stream begins: nothing is sent twice that the agent has, and all of it anew where that is in doubt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from stream_world import Agent, Kind, SyncPoint, Update, Welcome, World, allow, members, mentioned, ops

from secgroups.agent.errors import BaseVersionError, StreamError
from secgroups.controller.stream_messages import SyncMode

DAY_US = 24 * 3600 * 1_000_000


class Site:
    """An agent in step that guards s1 in web, which names 300 peers as remote; and what a test does to it."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.backup = folder / "backup.db"
        self.peers = world.group("peers")
        self.web = world.group("web", allow(80), allow(81, members(self.peers)))
        self.other = world.group("other")
        for number in range(100, 400):
            world.server(f"s{number}", "", [self.peers])
        world.server("s1", "a", [self.web])
        self.agent = Agent(world, "a").connect()
        self.agent.pump()

    def away(self, *changes: Callable[[Site], object]) -> list[object]:
        """Let changes happen while the agent is away; return what it is told when it comes back."""
        self.agent.disconnect()
        for change in changes:
            change(self)
        return self.back()

    def back(self) -> list[object]:
        self.agent.connect()
        return self.agent.pump()

    @property
    def began(self) -> tuple[str, str]:
        return self.agent.channel.mode.name, self.agent.channel.mode_reason


@pytest.fixture
def site(world: World, tmp_path: Path) -> Site:
    return Site(world, tmp_path)


def restart(site: Site) -> None:
    site.world.restart()


def a_rule_more(site: Site) -> None:
    site.world.rule(site.web, allow(443))


def a_peer_more(site: Site) -> None:
    number = len(site.world.state.servers_of_group(site.peers.id)) + 500
    site.world.server(f"s{number}", "", [site.peers])


def nothing_of_its_own(site: Site) -> None:
    site.world.rule(site.other, allow(443))


def the_server_goes(site: Site) -> None:
    site.world.do(ops.delete_server, server_id="s1")


def it_goes_and_comes_again(site: Site) -> None:
    the_server_goes(site)
    site.world.server("s1", "a", [site.web])


@pytest.mark.parametrize(
    ("mode", "told", "changes"),
    [
        ("RESUMED", [], []),
        ("RESUMED", [], [nothing_of_its_own]),
        ("RESUMED", [("group", "web")], [a_rule_more]),
        ("RESUMED", [("patch", "peers")], [a_peer_more, a_peer_more]),
        ("RESUMED", [("patch", "peers"), ("group", "web")], [a_rule_more, a_peer_more]),
        ("RESUMED", [("-server", "p/s1"), ("-group", "web"), ("-set", "peers")], [the_server_goes]),
        ("RESUMED", [("server", "p/s1")], [it_goes_and_comes_again]),
        ("RESUMED", [], [restart]),
        ("RESUMED", [], [nothing_of_its_own, restart]),
        ("DIFFERENCE", [("group", "web")], [a_rule_more, restart]),
        ("DIFFERENCE", [("set", "peers")], [a_peer_more, restart]),
        ("DIFFERENCE", [("group", "web")], [restart, restart, a_rule_more, restart]),
        ("DIFFERENCE", [("-server", "p/s1"), ("-group", "web"), ("-set", "peers")], [the_server_goes, restart]),
        # All of it is known since the start, which found the agent up to date.
        ("RESUMED", [("patch", "peers"), ("group", "web")], [restart, a_rule_more, a_peer_more]),
    ],
)
def test_an_agent_that_comes_back_is_told_what_differs_and_nothing_else(
    site: Site, mode: str, told: list[tuple[str, str]], changes: list[Callable[[Site], object]]
) -> None:
    welcome, *updates, point = site.away(*changes)
    assert isinstance(welcome, Welcome)
    assert (welcome.mode.name, welcome.timeline_id) == (mode, site.world.store.timeline_id)
    assert isinstance(point, SyncPoint)
    assert not point.snapshot_end
    names = {site.peers.id: "peers", site.web.id: "web"}
    assert [(kind, names.get(name, name)) for update in updates for kind, name in mentioned(update)] == told
    assert all(update.more for update in updates)
    assert site.world.lagging() == {}
    assert site.agent.replica.timeline_id == site.world.store.timeline_id
    again = Agent(site.world, "b").connect()
    again.pump()
    fresh = Agent(site.world, "a", boot=2).connect()
    fresh.pump()
    assert site.agent.replica.ruleset == replace(fresh.replica.ruleset, revision=site.agent.replica.ruleset.revision)
    assert again.holds == set()


def test_the_reason_why_a_stream_is_no_better_is_named(site: Site) -> None:
    site.away(a_rule_more)
    assert site.began == ("RESUMED", "")
    held = site.agent.replica.revision
    site.away(a_rule_less, restart)
    assert site.began == ("DIFFERENCE", f"what changed since revision {held} is not in memory")


def a_rule_less(site: Site) -> None:
    site.world.do(ops.replace_rules, group_id=site.web.id, specs=[allow(80)])


def test_commits_that_the_agent_missed_are_timed_if_they_are_known(site: Site) -> None:
    site.agent.disconnect()
    site.world.now_us += 5_000_000
    at_us = site.world.now_us
    a_rule_more(site)
    site.world.now_us += 5_000_000
    a_peer_more(site)
    _, update, _ = site.back()
    assert update.oldest_commit_us == at_us
    a_rule_less(site)
    _, update, _ = site.away(restart)
    assert update.oldest_commit_us == 0


# What leads to a snapshot.


def another_store(site: Site) -> str:
    site.agent.replica.store_epoch = "another"
    return "what it holds is of another store (another)"


def distrust(site: Site) -> str:
    site.agent.replica.distrust()
    return "the agent holds nothing that it trusts"


def no_timeline(site: Site) -> str:
    site.agent.replica.timeline_id = ""
    return "it does not say under which timeline it was told what it holds"


def unknown_timeline(site: Site) -> str:
    site.agent.replica.timeline_id = "t"
    return f"revision {site.agent.replica.revision} of timeline t is not in the past of this store"


def ahead(site: Site) -> str:
    now = site.world.revision
    site.agent.replica.revision = now + 1
    return f"it is ahead of the store: at revision {now + 1} of {now}"


def wrong_digest(site: Site) -> str:
    site.agent.replica.held._sum += 1
    return "the digest that it states is not that of what it lists"


def what_came_later(site: Site) -> str:
    site.agent.replica.revision = 5
    return "it lists what came after revision 5"


def compacted(site: Site) -> str:
    a_peer_more(site)
    a_peer_more(site)
    site.world.now_us += 31 * DAY_US
    nothing_of_its_own(site)
    begins = site.world.store.compacted_revision
    assert begins > site.agent.replica.revision
    return f"the change log begins after revision {begins}, it is at {site.agent.replica.revision}"


def put_back(site: Site) -> str:
    """The store was put back to a copy from before what the agent holds, and has gone past it since."""
    site.world.copy(site.backup)
    site.agent.connect()
    a_rule_more(site)
    site.agent.pump()
    site.agent.disconnect()
    site.world.restore(site.backup)
    for _ in range(3):
        a_rule_less(site)
        nothing_of_its_own_again(site)
    at, timeline_id = site.agent.replica.revision, site.agent.replica.timeline_id
    assert site.world.revision > at
    return f"revision {at} of timeline {timeline_id} is not in the past of this store"


def nothing_of_its_own_again(site: Site) -> None:
    site.world.do(ops.replace_rules, group_id=site.other.id, specs=[allow(site.world.revision)])


def put_back_and_the_agent_is_ahead(site: Site) -> str:
    site.world.copy(site.backup)
    site.agent.connect()
    a_rule_more(site)
    site.agent.pump()
    site.agent.disconnect()
    site.world.restore(site.backup)
    return f"it is ahead of the store: at revision {site.agent.replica.revision} of {site.world.revision}"


@pytest.mark.parametrize(
    "doubt",
    [
        another_store,
        distrust,
        no_timeline,
        unknown_timeline,
        ahead,
        wrong_digest,
        what_came_later,
        compacted,
        put_back,
        put_back_and_the_agent_is_ahead,
    ],
)
def test_what_is_in_doubt_is_sent_whole(site: Site, doubt: Callable[[Site], str]) -> None:
    site.agent.disconnect()
    reason = doubt(site)
    welcome, *_, point = site.back()
    assert welcome.mode is SyncMode.SNAPSHOT
    assert site.began == ("SNAPSHOT", reason)
    assert point.snapshot_end
    fresh = Agent(site.world, "a", boot=2).connect()
    fresh.pump()
    assert site.agent.replica.ruleset == fresh.replica.ruleset
    fresh.disconnect()
    site.agent.boot = 3
    site.agent.connect()
    assert site.agent.pump()[0].mode is SyncMode.RESUMED


def test_a_copy_of_the_file_that_lacks_nothing_goes_on(site: Site) -> None:
    site.agent.disconnect()
    site.world.copy(site.backup)
    site.world.restore(site.backup)
    a_rule_more(site)
    welcome, update, _ = site.back()
    assert welcome.mode is SyncMode.RESUMED
    assert mentioned(update) == [("group", site.web.id)]


def test_the_timeline_follows_what_is_in_force(site: Site) -> None:
    first = site.world.store.timeline_id
    restart(site)
    second = site.world.store.timeline_id
    assert site.agent.replica.timeline_id == first
    site.agent.channel = None
    site.agent.connect()
    site.agent.send()
    site.agent.apply(1)  # The welcome alone.
    assert site.agent.replica.timeline_id == first
    site.agent.apply()
    assert site.agent.replica.timeline_id == second
    restart(site)
    site.agent.channel = None
    site.back()
    restart(site)
    site.agent.channel = None
    site.agent.connect().pump()
    site.agent.beat()
    site.agent.apply()
    assert site.agent.replica.timeline_id == site.world.store.timeline_id


def test_a_difference_whose_digest_does_not_fit_is_not_applied(site: Site) -> None:
    a_rule_more(site)
    restart(site)
    site.agent.channel = None
    site.agent.connect()
    before, revision = site.agent.replica.ruleset, site.agent.replica.revision
    *messages, point = site.agent.send()
    assert any(isinstance(message, Update) for message in messages)
    site.agent.inbox[-1] = replace(point, state_digest=b"\0" * 16)
    with pytest.raises(StreamError, match="state digest at revision"):
        site.agent.apply()
    assert (site.agent.replica.ruleset, site.agent.replica.revision) == (before, revision)


# What is rejected stays known.


def reject_web(site: Site) -> None:
    a_rule_more(site)
    site.agent.send()
    site.agent.cannot = {(Kind.GROUP, site.web.id)}
    site.agent.apply()


def rejected(site: Site) -> list[str]:
    return [item.key[1] for item in site.world.publisher.find_status("a").rejected]


@pytest.mark.parametrize("acknowledged", [True, False])
@pytest.mark.parametrize("restarted", [True, False])
def test_what_is_rejected_is_said_again_on_the_next_stream_and_not_taken_for_in_force(
    site: Site, acknowledged: bool, restarted: bool
) -> None:
    reject_web(site)
    revision = site.world.revision
    if acknowledged:
        site.agent.ack()
    if restarted:
        restart(site)
        site.agent.channel = None
    else:
        site.agent.disconnect()
    site.agent.connect()
    site.agent.send()
    assert "a" in site.world.lagging(revision)
    site.agent.apply()
    assert "a" in site.world.lagging(revision)
    site.agent.ack()
    assert site.began == ("RESUMED", "")
    assert rejected(site) == [site.web.id]
    assert site.world.lagging(revision)["a"].startswith(f"rejected group {site.web.id}")
    site.agent.cannot = set()
    a_rule_less(site)
    site.agent.pump()
    assert rejected(site) == []
    assert site.world.lagging(revision) == {}


def test_what_is_no_longer_rejected_is_not_shown_although_its_acknowledgement_was_lost(site: Site) -> None:
    reject_web(site)
    site.agent.ack()
    site.agent.cannot = set()
    a_rule_less(site)
    site.agent.send()
    site.agent.apply()
    site.agent.disconnect()
    assert rejected(site) == [site.web.id]
    site.back()
    assert rejected(site) == []
    assert site.world.lagging() == {}


def test_an_agent_that_restarts_with_the_last_good_version_is_sent_the_rejected_one_again(site: Site) -> None:
    reject_web(site)
    site.agent.ack()
    site.agent.save()
    site.agent.reboot()
    site.agent.cannot = set()
    welcome, update, _ = site.back()
    assert (welcome.mode.name, mentioned(update)) == ("DIFFERENCE", [("group", site.web.id)])
    assert site.began[1] == f"group {site.web.id} differs without a change since revision {site.world.revision}"
    assert rejected(site) == []
    assert site.world.lagging() == {}


def test_an_agent_that_lost_its_latest_state_is_behind_until_it_has_it_again(site: Site) -> None:
    site.agent.save()
    a_rule_more(site)
    revision = site.world.revision
    site.agent.pump()
    assert site.world.lagging(revision) == {}
    site.agent.reboot()
    site.agent.connect()
    assert site.world.lagging(revision) == {"a": "not acknowledged yet"}
    assert mentioned(site.agent.pump()[1]) == [("group", site.web.id)]
    assert site.began == ("RESUMED", "")
    assert site.world.lagging(revision) == {}


def test_an_agent_that_a_start_of_the_controller_has_not_seen_is_in_force_when_it_says_so(site: Site) -> None:
    a_rule_more(site)
    site.agent.pump()
    restart(site)
    site.agent.channel = None
    assert site.world.lagging() == {"a": "not connected"}
    site.agent.connect()
    site.agent.send()
    assert site.world.lagging() == {"a": "not acknowledged yet"}
    site.agent.apply()
    site.agent.ack()
    assert site.world.lagging() == {}


def test_a_set_patched_on_top_of_what_the_agent_rejected_ends_in_a_snapshot_and_never_in_wrong_members(site: Site) -> None:
    a_peer_more(site)
    site.agent.send()
    site.agent.cannot = {(Kind.SET, site.peers.id)}
    site.agent.apply()
    before = site.agent.replica.ruleset
    site.agent.cannot = set()
    restart(site)
    a_peer_more(site)
    site.agent.channel = None
    with pytest.raises(BaseVersionError):
        site.back()
    assert site.agent.replica.ruleset is before
    site.agent.replica.distrust()
    assert site.back()[0].mode is SyncMode.SNAPSHOT
    assert len(site.agent.replica.ruleset.sets[site.peers.id].members) == 302
