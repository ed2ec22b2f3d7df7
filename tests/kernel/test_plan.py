"""What a change costs in commands, and that old and new never depend on the way between them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from rig import ADDRESSES, DB, EGRESS, WEB, allow

from secgroups.agent.errors import ConfigError
from secgroups.agent.flow import Direction
from secgroups.agent.kernel.marks import MarkLayout
from secgroups.agent.kernel.plan import Installed, Plan, Planner
from secgroups.agent.kernel.policy import Compiler
from secgroups.agent.kernel.skeleton import Features, hooks, skeleton
from secgroups.agent.kernel.statements import Table
from secgroups.agent.ruleset import AddressSet, GroupRules, Rule, Ruleset, ServerBinding

PORTED = allow("1", protocol=6, ports=80)
BY_GROUP = allow("2", protocol=6, ports=5432, group="friends")


def ruleset(rules: dict[str, list[Rule]], servers: dict[str, list[str]], friends: list[str]) -> Ruleset:
    return Ruleset(
        revision=1,
        sets={"friends": AddressSet(group_id="friends", version=1, members=frozenset(map(ip_address, friends)))},
        groups={name: GroupRules(group_id=name, version=1, name=name, rules=tuple(held)) for name, held in rules.items()},
        servers={
            name: ServerBinding(
                server=name, version=1, addresses=frozenset(map(ip_address, ADDRESSES[name])), group_ids=tuple(group_ids)
            )
            for name, group_ids in servers.items()
        },
    )


class Planned:
    """Plans one state after another."""

    def __init__(self, mask: int = 0xFFFF) -> None:
        self._planner = Planner(Table("t"), MarkLayout(mask), {})
        self._compiler = Compiler()
        self.installed = self._planner.with_epochs(Installed()).installed

    def to(self, wanted: Ruleset) -> Plan:
        plan = self._planner.change(self.installed, self._compiler.target(wanted))
        self.installed = plan.installed
        return plan

    def epochs(self, direction: Direction) -> list[int]:
        return sorted(side.epoch for side in self.installed.sides.values() if side.direction is direction)


def said(plan: Plan) -> list[str]:
    """Return the commands in short: what is done to which object."""
    told = []
    for command in [*plan.prepare, *plan.flip]:
        ((verb, what),) = command.items()
        ((kind, value),) = what.items()
        told.append(f"{verb} {kind} {value.get('chain') or value['name']}")
    return told


START = ({"web": [PORTED], "db": [BY_GROUP, allow("3", EGRESS)]}, {WEB: ["web"], DB: ["db"]}, ["203.0.113.7"])


def test_the_same_again_costs_nothing() -> None:
    planned = Planned()
    planned.to(ruleset(*START))
    assert said(planned.to(ruleset(*START))) == []


def test_a_member_that_joins_is_one_element_and_no_epoch() -> None:
    planned = Planned()
    planned.to(ruleset(*START))
    before = planned.epochs(Direction.INGRESS)
    plan = planned.to(ruleset(*START[:2], ["203.0.113.7", "203.0.113.8"]))
    assert said(plan) == ["add element members-1-4"]
    assert plan.flip[0]["add"]["element"]["elem"] == ["203.0.113.8"]
    assert planned.epochs(Direction.INGRESS) == before


def test_a_member_that_leaves_is_one_element_and_an_epoch_for_those_who_ask_for_the_group() -> None:
    planned = Planned()
    planned.to(ruleset(*START))
    before = {key: side.epoch for key, side in planned.installed.sides.items()}
    plan = planned.to(ruleset(*START[:2], []))
    assert plan.prepare == []
    assert said(plan)[0] == "delete element members-1-4"
    changed = {key for key, side in planned.installed.sides.items() if side.epoch != before[key]}
    assert {(key.policy, key.direction) for key in changed} == {(("db",), Direction.INGRESS)}


@pytest.mark.parametrize(
    ("gone", "come", "before", "after"),
    [
        ("7", "8", "7", "8"),
        ("79", "8", "79", "8"),
        ("7", "89", "7", "89"),
        ("7", "", "789", "98"),
        ("", "9", "78", "789"),
        ("78", "", "78", ""),
        ("9", "8", "79", "78"),
    ],
)
def test_of_members_those_that_come_and_those_that_go_are_told(gone: str, come: str, before: str, after: str) -> None:
    planned = Planned()
    planned.to(ruleset(*START[:2], [f"192.0.2.{number}" for number in before]))
    plan = planned.to(ruleset(*START[:2], [f"192.0.2.{number}" for number in after]))
    told = dict.fromkeys(("delete", "add"), "")
    for command in plan.flip:
        ((what, named),) = command.items()
        if "element" in named:
            told[what] += "".join(sorted(address[-1] for address in named["element"]["elem"]))
    assert told == {"delete": gone, "add": come}


def test_a_rule_that_changes_touches_its_side_of_its_policies_alone() -> None:
    planned = Planned()
    planned.to(ruleset(*START))
    plan = planned.to(ruleset({**START[0], "web": [allow("1", protocol=6, ports=81)]}, *START[1:]))
    (number,) = {
        side.number
        for key, side in planned.installed.sides.items()
        if key.policy == ("web",) and key.direction is Direction.INGRESS
    }
    assert all(f"ingress-{number}" in told for told in said(plan))


def test_servers_of_one_policy_share_its_chains() -> None:
    planned = Planned()
    planned.to(ruleset({"web": [PORTED]}, {WEB: ["web"], DB: ["web"]}, []))
    assert len(planned.installed.sides) == 2


def test_what_is_taken_away_leaves_nothing() -> None:
    planned = Planned()
    there = planned.to(ruleset(*START))
    away = planned.to(ruleset({}, {}, []))
    made = [told.removeprefix("add ") for told in said(there) if told.startswith(("add chain", "add set"))]
    gone = [told.removeprefix("delete ") for told in said(away) if told.startswith(("delete chain", "delete set"))]
    assert sorted(made) == sorted(gone)


def test_epochs_run_out_and_then_every_packet_is_judged() -> None:
    planned = Planned(mask=0xFF)
    for turn in range(20):
        planned.to(ruleset({"web": [allow("1", protocol=6, ports=turn + 1)]}, {WEB: ["web"]}, []))
        assert planned.epochs(Direction.INGRESS) == [turn + 1 if turn < 15 else 0]
    assert planned.installed.out_of_epochs(MarkLayout(0xFF))


@pytest.mark.parametrize("mask", [0, 0x7, 0x7F, 0xFF0FF, 0x1FF, 1 << 32, -256])
def test_a_mask_that_is_no_run_of_an_even_number_of_bits_is_refused(mask: int) -> None:
    with pytest.raises(ConfigError, match="must be one run of an even number of bits, 8 to 32"):
        MarkLayout(mask)


@pytest.mark.parametrize(
    ("opener", "answerer", "mask"), [(0xFFF00000, 0x000FFF00, 0xFFFFFF00), (0xF0, 0x0F, 0xFF), (0xFFFF0000, 0xFFFF, 0xFFFFFFFF)]
)
def test_the_halves_of_a_mask_are_apart(opener: int, answerer: int, mask: int) -> None:
    marks = MarkLayout(mask)
    assert (marks.field(Direction.EGRESS).mask, marks.field(Direction.INGRESS).mask) == (opener, answerer)


@pytest.mark.parametrize("ports", [False, True])
def test_few_ways_lead_to_the_servers(ports: bool) -> None:
    # With each new rule that names a chain the kernel follows every way, through every element of a verdict map, each time anew.
    table, features = Table("t"), Features(marks=MarkLayout(), ports=ports)
    leads: dict[str, list[str]] = {}
    begins = []
    for command in [*skeleton(table, features), *hooks(table, features)]:
        ((kind, value),) = command["add"].items()
        if kind == "chain" and "hook" in value:
            begins.append(value["name"])
        if kind == "rule":
            for expression in value["expr"]:
                ((what, more),) = expression.items()
                if what in ("jump", "goto"):
                    leads.setdefault(value["chain"], []).append(more["target"])
                elif what == "vmap":
                    leads.setdefault(value["chain"], []).append(more["data"])

    def ways(chain: str, wanted: str) -> int:
        return (chain == wanted) + sum(ways(target, wanted) for target in leads.get(chain, []))

    # Once by connection and once by packet, from each of the three hooks.
    assert [sum(ways(begin, wanted) for begin in begins) for wanted in ("@opens4", "@opens6", "@answers4", "@answers6")] == [6] * 4
