"""The effective ruleset is what a project's plan says, by definition, on whatever way the store came there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_projects import Builder, Plan, plans
from rules_by_definition import Packet

from secgroups.controller.errors import NotFoundError
from secgroups.controller.model import Direction
from secgroups.controller.rulesets import End, FlowQuestion, Reason, effective_ruleset, explain_flow
from secgroups.controller.state import State

# TCP, UDP, ICMP and GRE; what the rules that are drawn tell apart, and what lies beside it.
QUESTIONS = [(6, 22), (6, 23), (6, 443), (17, 80), (17, 444), (1, 0), (47, 0)]
OUTSIDE = ("10.0.0.6", "192.0.2.77", "2001:db8::99", "2001:db9::1")


@contextmanager
def builder() -> Iterator[Builder]:
    with tempfile.TemporaryDirectory(prefix="secgroups-test-") as folder, closing(Builder(Path(folder) / "secgroups.db")) as made:
        yield made


def build_both(made: Builder, p: Plan, q: Plan, chance: Random | None) -> None:
    """Bring projects p and q into being, a step of either at a time: straight, or by the detours of ``chance``."""
    ways = [
        made.straight(name, plan) if chance is None else made.detoured(name, plan, chance) for name, plan in (("p", p), ("q", q))
    ]
    while ways:
        way = ways[0] if chance is None else chance.choice(ways)
        if next(way, way) is way:
            ways.remove(way)


def check(made: Builder, state: State, project: str, plan: Plan) -> None:
    for server_id, server in plan.servers.items():
        found = effective_ruleset(state, project, server_id)
        assert found.revision == state.revision
        assert {str(address) for address in found.server.addresses} == set(server.addresses)
        rules = plan.rules_of(server_id)
        assert sorted(made.named(each.rule) for each in found.rules) == sorted(rules)
        assert [each.rule.id for each in found.rules] == sorted(each.rule.id for each in found.rules)
        for each in found.rules:
            assert each.group.name == made.named(each.rule)[0]
            assert (each.remote_group.name if each.remote_group else None) == rules[made.named(each.rule)].remote_group
        # Members are resolved once for each group that is named, also for one that has none.
        remotes = {rule.remote_group for rule in rules.values() if rule.remote_group}
        assert {each.group.name: list(map(str, each.addresses)) for each in found.remote_groups} == {
            name: plan.members(name) for name in remotes
        }
        assert [each.group.id for each in found.remote_groups] == sorted(each.group.id for each in found.remote_groups)


@settings(deadline=None, max_examples=25)
@given(plans(), plans(), st.randoms(use_true_random=False))
def test_it_depends_on_what_is_stored_alone(p: Plan, q: Plan, chance: Random) -> None:
    for detours in (None, chance):
        with builder() as made:
            build_both(made, p, q, detours)
            loaded = State(made.store.load())
            for project, plan in (("p", p), ("q", q)):
                check(made, made.state, project, plan)
                check(made, loaded, project, plan)
            for server_id in p.servers.keys() - q.servers.keys():
                with pytest.raises(NotFoundError):
                    effective_ruleset(made.state, "q", server_id)


@settings(deadline=None, max_examples=10)
@given(plans(), plans())
def test_a_flow_is_allowed_exactly_if_a_rule_of_each_server_covers_it(p: Plan, q: Plan) -> None:
    with builder() as made:
        build_both(made, p, q, None)
        ends = [(server_id, address) for server_id, server in p.servers.items() for address in server.addresses]
        ends += [("", address) for address in OUTSIDE]
        for source, destination in ((one, other) for one in ends for other in ends if one[0] or other[0]):
            if ip_address(source[1]).version == ip_address(destination[1]).version:
                for protocol, port in QUESTIONS:
                    check_flow(made, p, source, destination, protocol, port)


def check_flow(made: Builder, plan: Plan, source: tuple[str, str], destination: tuple[str, str], protocol: int, port: int) -> None:
    ends = [End(server_id=server_id, address=ip_address(address)) for server_id, address in (source, destination)]
    question = FlowQuestion(project="p", source=ends[0], destination=ends[1], protocol=protocol, port=port)
    judgements = list(explain_flow(made.state, question).judgements)
    for direction, (server_id, _), (_, remote) in (("EGRESS", source, destination), ("INGRESS", destination, source)):
        if not server_id:
            continue
        packet = Packet(
            direction=direction,
            protocol=protocol,
            remote=ip_address(remote),
            port=port or None,
            remote_groups=plan.groups_at(remote),
        )
        allowing = {named for named, rule in plan.rules_of(server_id).items() if rule.covers(packet)}
        judgement = judgements.pop(0)
        assert (judgement.server.id, judgement.direction) == (server_id, Direction[direction])
        assert judgement.reason is (Reason.NEW if allowing else Reason.NO_RULE)
        candidates = [
            each.rule for each in effective_ruleset(made.state, "p", server_id).rules if made.named(each.rule) in allowing
        ]
        assert judgement.rule == min(candidates, key=lambda rule: rule.id, default=None)
    assert not judgements
