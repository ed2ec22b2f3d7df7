"""What an agent is asked about a change is what the change then does to it; and how many questions a stream carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from stream_world import PROJECT, Agent, World, allow, members, ops

from secgroups.agent.convert import ruleset_update
from secgroups.agent.effective import effective_groups, effective_ruleset
from secgroups.agent.ruleset import Ruleset
from secgroups.controller.prospect import Prospect, takes_away
from secgroups.controller.questions import QUESTIONS_MAX
from secgroups.controller.store.interface import Pending
from secgroups.controller.stream_messages import GoAway, PreviewRequest, PreviewResult, Update
from secgroups.v1 import agent_service_pb2 as pb

Ask = tuple[Callable[..., Any], dict[str, Any]]
ADDRESS = ip_address("10.0.9.9")


class Fleet:
    """Agents a and b. s1 (on a) is in web and more, s2 (on b) in peers, s3 (on a) in db; web, db and far name others as remotes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.peers = world.group("peers")
        self.unheld = world.group("unheld")
        self.more = world.group("more", allow(22))
        self.web = world.group("web", allow(80), allow(81, members(self.peers)))
        self.db = world.group("db", allow(3306, members(self.web)))
        self.far = world.group("far", allow(90, members(self.unheld)), allow(91, members(self.db)))
        self.s1 = world.server("s1", "a", [self.web, self.more], "10.0.0.1", "2001:db8::1")
        world.server("s2", "b", [self.peers])
        world.server("s3", "a", [self.db])
        world.server("s4", "", [self.unheld])
        self.rules = {rule.spec.ports[0]: rule.id for group in (self.more, self.web, self.db) for rule in self.rules_of(group)}
        self.agent = Agent(world, "a").connect()
        self.agent.pump()

    def rules_of(self, group: Any) -> list[Any]:
        return [rule for rule in self.world.state.rules_of_group(group.id) if rule.spec.ports]

    def prospect(self, ask: Ask) -> Prospect:
        """Try a change and take it back."""
        operation, values = ask
        (tried,) = self.world.store.commit([Pending(lambda tx: operation(tx, project=PROJECT, **values), validate_only=True)])
        assert not isinstance(tried, Exception), tried
        assert takes_away(tried.changes)
        return Prospect(self.world.state, tried.changes)

    def asked(self, ask: Ask) -> Ruleset:
        """Return what the agent would hold, as it is asked about."""
        self.agent.channel.questions.ask(self.prospect(ask), 1.0, lambda answer: None)
        *updates, question = self.agent.send()
        assert isinstance(question, PreviewRequest)
        assert all(isinstance(update, Update) for update in updates)
        self.agent.apply()
        self.agent.ack()
        message = pb.SubscribeResponse.FromString(self.world.wire.encoded(question)).preview_request
        return self.agent.replica.ruleset.apply(ruleset_update(message.update))


@pytest.fixture
def fleet(world: World) -> Fleet:
    return Fleet(world)


def in_effect(ruleset: Ruleset) -> dict[str, tuple[Any, Any]]:
    """Return by server its addresses and what it allows; ids are left out, new rules get theirs when they are made."""
    groups = effective_groups(ruleset, {})
    holds = {server: effective_ruleset(binding, groups) for server, binding in ruleset.servers.items()}
    assert all(each.groups is not None for each in holds.values())
    return {
        server: (each.addresses, {(replace(rule.rule, id=""), rule.group_id, rule.members) for rule in each.rules()})
        for server, each in holds.items()
    }


CHANGES: dict[str, Callable[[Fleet], Ask]] = {
    "a rule goes": lambda fleet: (ops.delete_rule, {"rule_id": fleet.rules[80]}),
    "a rule goes that names a group": lambda fleet: (ops.delete_rule, {"rule_id": fleet.rules[81]}),
    "other rules": lambda fleet: (ops.replace_rules, {"group_id": fleet.web.id, "specs": [allow(80), allow(443)]}),
    "no rules": lambda fleet: (ops.replace_rules, {"group_id": fleet.web.id, "specs": []}),
    "rules that name a group which is not held": lambda fleet: (
        ops.replace_rules,
        {"group_id": fleet.web.id, "specs": [allow(5, members(fleet.unheld))]},
    ),
    "a group is detached": lambda fleet: (ops.detach_group, {"server_id": "s1", "group_id": fleet.more.id}),
    "a group is detached whose members a rule names": lambda fleet: (
        ops.detach_group,
        {"server_id": "s1", "group_id": fleet.web.id},
    ),
    "groups that are not held, and what they name": lambda fleet: (
        ops.set_server_groups,
        {"server_id": "s1", "group_ids": [fleet.far.id]},
    ),
    "other addresses": lambda fleet: (ops.update_server, {"server_id": "s1", "addresses": [ADDRESS]}),
    "an address less": lambda fleet: (ops.update_server, {"server_id": "s1", "addresses": list(fleet.s1.addresses[:1])}),
    "addresses and groups": lambda fleet: (
        ops.update_server,
        {"server_id": "s1", "addresses": [ADDRESS], "group_ids": [fleet.web.id, fleet.far.id]},
    ),
    "a member elsewhere has another address": lambda fleet: (ops.update_server, {"server_id": "s2", "addresses": [ADDRESS]}),
    "a member elsewhere is deleted": lambda fleet: (ops.delete_server, {"server_id": "s2"}),
    "a server is deleted": lambda fleet: (ops.delete_server, {"server_id": "s1"}),
    "a server is left alone": lambda fleet: (ops.update_server, {"server_id": "s1", "agent_id": ""}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_question_is_what_the_change_then_does(world: World, fleet: Fleet, change: Callable[[Fleet], Ask]) -> None:
    ask = change(fleet)
    before, revision = in_effect(fleet.agent.replica.ruleset), world.revision
    told = in_effect(fleet.asked(ask))
    assert (in_effect(fleet.agent.replica.ruleset), world.revision) == (before, revision)
    assert told != before
    world.do(ask[0], **ask[1])
    fleet.agent.pump()
    assert told == in_effect(fleet.agent.replica.ruleset)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_question_comes_behind_the_updates_that_are_on_their_way(
    world: World, fleet: Fleet, change: Callable[[Fleet], Ask]
) -> None:
    world.server("s5", "", [fleet.peers, fleet.unheld])
    world.rule(fleet.more, allow(4444))
    ask = change(fleet)
    told = in_effect(fleet.asked(ask))
    world.do(ask[0], **ask[1])
    fleet.agent.pump()
    assert told == in_effect(fleet.agent.replica.ruleset)


def test_a_server_that_moves_is_gone_from_the_old_agent_and_no_question_to_the_new_one(world: World, fleet: Fleet) -> None:
    ask = (ops.update_server, {"server_id": "s1", "agent_id": "b"})
    assert set(in_effect(fleet.asked(ask))) == {f"{PROJECT}/s3"}
    assert world.publisher.holders_of(fleet.prospect(ask).server_keys) == {"a"}


def test_both_agents_of_a_server_on_its_way_are_asked(world: World, fleet: Fleet) -> None:
    world.move("s1", "b")
    ask = CHANGES["a rule goes"](fleet)
    assert world.publisher.holders_of(fleet.prospect(ask).server_keys) == {"a", "b"}
    told = in_effect(fleet.asked(ask))
    assert f"{PROJECT}/s1" in told
    other = in_effect(fleet.asked((ops.update_server, {"server_id": "s1", "addresses": [ADDRESS]})))
    assert other[f"{PROJECT}/s1"][0] == {ADDRESS}
    back = in_effect(fleet.asked((ops.update_server, {"server_id": "s1", "agent_id": "a", "addresses": [ADDRESS]})))
    assert back[f"{PROJECT}/s1"][0] == {ADDRESS}


@pytest.mark.parametrize(
    ("operation", "values"),
    [
        (ops.create_rules, {"specs": [allow(1)], "bulk": False}),
        (ops.update_group, {"description": "other"}),
    ],
)
def test_what_only_gives_is_asked_of_nobody(world: World, fleet: Fleet, operation: Any, values: Any) -> None:
    pending = Pending(lambda tx: operation(tx, project=PROJECT, group_id=fleet.web.id, **values), validate_only=True)
    (tried,) = world.store.commit([pending])
    assert not takes_away(tried.changes)


def test_a_full_window_holds_no_question_up_and_a_question_takes_no_room_in_it(world: World, fleet: Fleet) -> None:
    for port in range(100, 130):
        world.rule(fleet.web, allow(port))
        fleet.agent.send()
    assert not fleet.agent.channel.has_news
    fleet.agent.channel.questions.ask(fleet.prospect(CHANGES["a rule goes"](fleet)), 1.0, lambda answer: None)
    assert fleet.agent.channel.has_news
    (question,) = fleet.agent.send()
    assert isinstance(question, PreviewRequest)
    fleet.agent.apply()
    fleet.agent.ack()
    fleet.agent.pump()
    assert world.lagging() == {}


def test_what_is_too_large_is_not_asked(world: World, fleet: Fleet) -> None:
    addresses = [str(ip_address("2001:db8:9::") + number) for number in range(33_600)]
    for start in range(0, len(addresses), 32):
        world.server(f"m{start}", "", [fleet.unheld], *addresses[start : start + 32])
    answers: list[PreviewResult | str] = []
    ask = CHANGES["groups that are not held, and what they name"](fleet)
    fleet.agent.channel.questions.ask(fleet.prospect(ask), 1.0, answers.append)
    assert fleet.agent.send() == []
    assert answers == ["too much to ask in one message"]


def test_questions_are_bounded_answered_once_and_end_with_the_stream(world: World, fleet: Fleet) -> None:
    questions = fleet.agent.channel.questions
    prospect = fleet.prospect(CHANGES["a rule goes"](fleet))
    answers: list[PreviewResult | str] = []
    ids = []
    for number in range(QUESTIONS_MAX):
        assert questions.obstacle == ""
        ids.append(questions.ask(prospect, 1.0, answers.append))
        if number == 1:
            assert [message.id for message in fleet.agent.send()] == ids
    assert f"{QUESTIONS_MAX} previews are under way" in questions.obstacle
    first = PreviewResult(id=ids[0], flows_cut=3, revision=9)
    for _ in range(2):
        questions.answer(first)
    questions.answer(PreviewResult(id=999, flows_cut=3, revision=9))
    assert answers == [first]
    assert questions.obstacle == ""
    questions.withdraw(ids[1], overdue=False)
    questions.withdraw(ids[2], overdue=True)  # It was not even sent.
    assert questions.obstacle == ""
    fleet.agent.disconnect()
    assert answers == [first, "it lost its connection"]
    assert questions.obstacle


def test_an_agent_that_left_one_unanswered_is_not_waited_for_until_it_answers(world: World, fleet: Fleet) -> None:
    questions = fleet.agent.channel.questions
    late = questions.ask(fleet.prospect(CHANGES["a rule goes"](fleet)), 1.0, lambda answer: None)
    fleet.agent.send()
    questions.withdraw(late, overdue=True)
    assert "unanswered" in questions.obstacle
    questions.answer(PreviewResult(id=late, flows_cut=0, revision=0, problem="too late"))
    assert questions.obstacle == ""


def test_a_stream_that_ends_asks_nothing_more(world: World, fleet: Fleet) -> None:
    fleet.agent.channel.questions.ask(fleet.prospect(CHANGES["a rule goes"](fleet)), 1.0, lambda answer: None)
    fleet.agent.channel.end("enough", 0)
    assert fleet.agent.send() == [GoAway(reason="enough", reconnect_after_s=0)]
