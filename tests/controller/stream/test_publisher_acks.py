"""Acknowledgements: the window, what is in force, rejected objects, starts that claim one id, and agents that break the rules."""

from __future__ import annotations

import pytest
from stream_world import Agent, Kind, World, allow, members, mentioned, ops

from secgroups.controller.errors import InvalidError
from secgroups.controller.returns import Returns
from secgroups.controller.stream_messages import Ack, GoAway, Hello, Rejected, Report

UNKNOWN = "rule r: direction 0 is not known to this agent"


@pytest.fixture
def agent(world: World) -> Agent:
    """An agent in step that guards s1 in the group web, which allows members of peers."""
    peers = world.group("peers")
    web = world.group("web", allow(80), allow(81, members(peers)))
    world.server("s1", "a", [web])
    world.server("s2", "", [peers])
    agent = Agent(world, "a").connect()
    agent.pump()
    return agent


def web_of(agent: Agent) -> str:
    (group_id,) = agent.replica.ruleset.groups
    return group_id


def test_a_slow_agent_costs_its_own_objects_and_gets_the_newest_state_when_it_acknowledges(world: World, agent: Agent) -> None:
    group_id = web_of(agent)
    for port in range(100, 116):
        world.do(ops.create_rules, group_id=group_id, specs=[allow(port)], bulk=False)
        assert len(agent.send()) == 1
    backlogs = set()
    for port in range(200, 260):
        world.do(ops.create_rules, group_id=group_id, specs=[allow(port)], bulk=False)
        assert agent.send() == []
        backlogs.add(agent.channel.backlog)
    assert backlogs == {17}
    wakes = agent.wakes
    agent.apply()
    agent.ack()
    assert agent.wakes > wakes
    assert len(agent.step().groups[0].rules) == 78


def test_the_agent_may_ask_for_a_smaller_window(world: World, agent: Agent) -> None:
    agent.disconnect()
    hello = Hello(agent_id="a", boot_id="b", window_messages=1)
    channel = world.publisher.connect(hello, lambda: None, world.now_us)
    *_, point = channel.next_messages(world.now_us)
    world.do(ops.create_rules, group_id=web_of(agent), specs=[allow(5)], bulk=False)
    assert not channel.has_news
    assert channel.next_messages(world.now_us) == []
    channel.acknowledge(Ack(nonce=point.nonce, applied_revision=world.revision), world.now_us)
    assert len(channel.next_messages(world.now_us)) == 1


def test_a_revision_is_in_force_when_all_it_touched_have_acknowledged(world: World, agent: Agent) -> None:
    other = Agent(world, "b").connect()
    other.pump()
    world.now_us += 1_000_000
    world.do(ops.create_rules, group_id=web_of(agent), specs=[allow(443)], bulk=False)
    revision = world.revision
    standing = world.publisher.in_force(revision)
    assert [(lag.agent_id, lag.connected, lag.reason) for lag in standing.lagging] == [("a", True, "not acknowledged yet")]
    assert (standing.agents_touched, standing.commit_to_in_force_us) == (1, None)
    agent.send()
    agent.apply()
    assert world.lagging() == {"a": "not acknowledged yet"}
    world.now_us += 2_500
    agent.ack()
    world.now_us += 1_000_000
    standing = world.publisher.in_force(revision)
    assert (standing.lagging, standing.agents_touched, standing.commit_to_in_force_us) == ((), 1, 2_500)


def test_agents_that_are_away_lag_only_behind_what_touched_them(world: World, agent: Agent) -> None:
    agent.disconnect()
    world.group("unused")
    assert world.lagging() == {}
    world.do(ops.create_rules, group_id=web_of(agent), specs=[allow(443)], bulk=False)
    missed = world.revision
    assert world.lagging() == {"a": "not connected"}
    assert world.lagging(missed - 1) == {}
    agent.connect()
    assert world.lagging() == {"a": "not acknowledged yet"}
    agent.pump()
    assert world.lagging() == {}


def test_an_agent_that_servers_name_but_nobody_has_seen_lags(world: World, agent: Agent) -> None:
    world.server("s5", "ghost", [])
    assert world.lagging() == {"ghost": "not connected"}
    assert world.publisher.find_status("ghost").pending_revisions == 1
    assert world.publisher.find_status("nobody") is None
    assert world.publisher.agent_ids() == ["a", "ghost"]


def test_of_a_revision_before_the_start_every_agent_that_guards_a_server_counts(world: World, agent: Agent) -> None:
    revision = world.revision
    world.server("s5", "ghost", [])
    world.restart()
    assert world.lagging(revision) == {"a": "not connected", "ghost": "not connected"}
    agent.connect().pump()
    assert world.lagging(revision) == {"ghost": "not connected"}
    Agent(world, "ghost").connect().pump()
    standing = world.publisher.in_force(revision)
    assert (standing.lagging, standing.agents_touched, standing.commit_to_in_force_us) == ((), 2, None)


def test_a_rejected_object_is_shown_not_sent_again_and_forgotten_when_a_newer_one_is_taken(world: World, agent: Agent) -> None:
    group_id = web_of(agent)
    world.do(ops.create_rules, group_id=group_id, specs=[allow(443)], bulk=False)
    refused, revision = agent.send()[0].groups[0], world.revision
    agent.reject(refused.key)
    status = world.publisher.find_status("a")
    assert [(item.key, item.version, item.code) for item in status.rejected] == [((Kind.GROUP, group_id), refused.version, 12)]
    assert status.pending_revisions == 1
    assert world.lagging() == {"a": f"rejected group {group_id} at version {refused.version}: {UNKNOWN}"}
    world.server("s9", "a", [])
    assert ("group", group_id) not in mentioned(agent.step())
    assert world.lagging() == {}  # What the rejected object is no part of is in force.
    assert world.lagging(revision) != {}
    world.do(ops.create_rules, group_id=group_id, specs=[allow(444)], bulk=False)
    agent.pump()
    assert world.publisher.find_status("a").rejected == ()
    assert world.lagging(revision) == {}


def test_a_rejected_object_holds_its_revision_up_until_its_removal_is_in_force(world: World, agent: Agent) -> None:
    group_id = web_of(agent)
    world.do(ops.create_rules, group_id=group_id, specs=[allow(443)], bulk=False)
    revision = world.revision
    agent.send()
    agent.cannot = {(Kind.GROUP, group_id)}
    agent.apply()
    # Before the agent is heard, the group leaves its span, and the removal is on its way.
    for server in world.state.servers_of_agent("a"):
        world.do(ops.delete_server, server_id=server.id)
    agent.send()
    agent.ack()
    assert list(world.lagging(revision)) == ["a"]
    agent.cannot = set()
    agent.apply()
    agent.ack()
    assert world.lagging(revision) == {}


def test_a_rejected_set_gets_its_next_version_whole(world: World, agent: Agent) -> None:
    (set_id,) = agent.replica.ruleset.sets
    peers = [group for group in world.state.groups("p") if group.id == set_id]
    for number in range(50, 90):
        world.server(f"s{number}", "", peers)
    refused = agent.send()[0]
    agent.reject((Kind.SET, set_id))
    assert mentioned(refused)
    world.server("s91", "", peers)
    assert mentioned(agent.send()[0]) == [("set", set_id)]


def test_what_a_report_says_is_shown(world: World, agent: Agent) -> None:
    world.publisher.heard(agent.channel, world.now_us + 5, 9, Report(flows=7, denies=3, verdicts={"REASON_NO_RULE": 3}))
    status = world.publisher.find_status("a")
    assert (status.report.flows, status.last_heard_us, status.host, status.server_count) == (7, world.now_us + 5, "host", 1)


@pytest.mark.parametrize(
    ("second_boot", "winner"), [(2, "second"), (1, "second"), (0, "first")], ids=["later start", "same start", "earlier start"]
)
def test_of_two_that_claim_one_id_the_later_start_wins(world: World, agent: Agent, second_boot: int, winner: str) -> None:
    second = Agent(world, "a", boot=second_boot).connect()
    loser = agent if winner == "second" else second
    (gone,) = loser.channel.next_messages(world.now_us)
    assert isinstance(gone, GoAway)
    assert gone.reconnect_after_s > 0
    if loser is agent:
        second.pump()
    agent_left = second if loser is agent else agent
    world.publisher.disconnect(loser.channel)
    world.do(ops.create_rules, group_id=web_of(agent), specs=[allow(443)], bulk=False)
    assert len(agent_left.pump()) == 1
    assert world.publisher.find_status("a").connected
    assert loser.channel.next_messages(world.now_us) == [gone]


@pytest.mark.parametrize(
    ("field", "ack"),
    [
        ("ack.nonce", Ack(nonce=99, applied_revision=1)),
        ("ack.nonce", Ack(nonce=1, applied_revision=1)),
        ("ack.applied_revision", Ack(nonce=0, applied_revision=10**9)),
        (
            "ack.rejected[0].object",
            Ack(nonce=0, applied_revision=1, rejected=(Rejected(key=(Kind.GROUP, "x"), version=1, code=3, message=""),)),
        ),
        (
            "ack.rejected[0].code",
            Ack(nonce=0, applied_revision=1, rejected=(Rejected(key=(Kind.SERVER, "p/s1"), version=1, code=0, message=""),)),
        ),
    ],
    ids=["unknown nonce", "nonce again", "revision to come", "unknown object", "rejected as OK"],
)
def test_an_acknowledgement_of_what_was_not_sent_is_refused_and_changes_nothing(
    world: World, agent: Agent, field: str, ack: Ack
) -> None:
    world.do(ops.create_rules, group_id=web_of(agent), specs=[allow(443)], bulk=False)
    agent.send()
    with pytest.raises(InvalidError) as caught:
        agent.channel.acknowledge(ack, world.now_us)
    assert caught.value.violations[0].field == field
    assert world.lagging() == {"a": "not acknowledged yet"}
    assert world.publisher.find_status("a").rejected == ()


def test_records_of_agents_that_guard_nothing_are_bounded(world: World, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secgroups.controller.roster.RECORDS_MAX", 5)
    for number in range(50):
        stranger = Agent(world, f"stranger-{number:02}").connect()
        stranger.pump()
        stranger.disconnect()
    assert world.publisher.agent_ids() == ["a", "stranger-46", "stranger-47", "stranger-48", "stranger-49"]


def test_agents_that_are_sent_away_together_are_asked_to_return_one_after_another(world: World, agent: Agent) -> None:
    agents = [agent, *(Agent(world, f"b{number}").connect() for number in range(3))]
    for each in agents:
        each.pump()
    world.publisher.end_all("the controller is stopping", Returns().next_s)
    ended = [message for each in agents for message in each.send()]
    assert all(isinstance(message, GoAway) and message.reason == "the controller is stopping" for message in ended)
    assert sorted(message.reconnect_after_s for message in ended if isinstance(message, GoAway)) == [1.0, 1.002, 1.004, 1.006]


def test_times_to_come_back_are_spread_over_half_a_minute_and_no_longer() -> None:
    returns = Returns()
    times_s = [returns.next_s() for _ in range(15_000)]
    assert len(set(times_s)) == 15_000
    assert (min(times_s), max(times_s)) == (1.0, 30.998)
    assert returns.next_s() == 1.0
