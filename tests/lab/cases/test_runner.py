"""The runner can fail: a wrong expectation of every kind is found, with the step, what came and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from secgroups.agent.firewall import ENGINES
from secgroups.agent.flow import Explanation, Packet, Reason, Verdict
from secgroups.agent.reference import Applied, ReferenceEngine
from secgroups.agent.ruleset import RulesetUpdate
from secgroups.lab.cases.loader import load_file
from secgroups.lab.cases.local import LocalWorlds
from secgroups.lab.cases.runner import Outcome, run_case

SETUP = """\
- name: one
  groups:
    web: {rules: [{direction: ingress, protocol: tcp, ports: 80, as: http}, {direction: ingress, protocol: udp, as: udp}]}
    locked: {egress: none, rules: [{direction: ingress, protocol: udp, ports: 53}]}
    base: {}
  servers:
    w1: {addresses: [10.0.0.1], groups: [web]}
    w2: {addresses: [10.0.0.2], groups: [base]}
    l1: {addresses: [10.0.0.3], groups: [locked]}
"""
HTTP = "from: 203.0.113.9, to: w1, protocol: tcp, port: 80"
CLOSED = "from: 203.0.113.9, to: w1, protocol: tcp, port: 81"
DNS = "open: {as: K, from: 203.0.113.9, to: l1, protocol: udp, port: 53}"
OPENED = f"open: {{as: K, {HTTP}}}"
SYN = f"packet: {{{HTTP}, tcp_flags: [syn]}}"
AGAIN = "add_rule: {group: web, direction: ingress, protocol: tcp, ports: 80}"
TO_W3 = "flow: {from: w2, to: w3, protocol: tcp, port: 80}"
TO_OLD = "packet: {from: 203.0.113.9, to: 10.0.0.1, protocol: 47, at: w1}"
FORGED = "packet: {from: 10.0.0.2, to: 203.0.113.9, protocol: 47, at: w1, direction: egress}"
QUOTE = "packet: {from: 203.0.113.1, to: w1, quotes: {flow: K}}"
ATTACH = "attach: {server: w1, group: base}"
OPEN_BASE = "add_rule: {group: base, direction: ingress, protocol: any}"
HTTP_TO_W2 = "flow: {from: w1, to: w2, protocol: tcp, port: 80}"
LATER = "packet: {from: 203.0.113.9, to: w1, protocol: udp, fragment: later}"


@pytest.fixture(scope="module", params=sorted(ENGINES))
def worlds(request: pytest.FixtureRequest) -> Iterator[LocalWorlds]:
    with LocalWorlds(request.param) as made:
        yield made


def outcome(worlds: LocalWorlds, tmp_path: Path, text: str) -> Outcome:
    file = tmp_path / "case.yaml"
    file.write_text(text)
    (case,) = load_file(str(file))
    return run_case(case, worlds.make)


def steps(*texts: str) -> str:
    return SETUP + "  steps:\n" + "".join(f"    - {{{text}}}\n" if ":" in text else f"    - {text}\n" for text in texts)


@pytest.mark.parametrize(
    ("expected", "got", "wrong"),
    [
        # Verdict, reason and rule of each verb that has them.
        ("deny", "allow NEW", [f"flow: {{{HTTP}}}, expect: deny"]),
        ("allow", "deny NO_RULE", [f"flow: {{{CLOSED}}}, expect: allow"]),
        ("ESTABLISHED", "allow NEW", [f"flow: {{{HTTP}}}, reason: ESTABLISHED"]),
        ("by rule udp", "allow NEW", [f"flow: {{{HTTP}}}, rule: udp"]),
        ("by rule http", "deny NO_RULE", [f"flow: {{{CLOSED}}}, rule: http"]),
        ("deny", "allow NEW", [f"{OPENED}, expect: deny"]),
        ("deny", "allow ESTABLISHED", [OPENED, "packet: {flow: K, from: w1}, expect: deny"]),
        ("REVOKED", "allow ESTABLISHED", [OPENED, "packet: {flow: K, from: w1}, reason: REVOKED"]),
        ("NO_RULE", "allow NEW", [f"{SYN}, reason: NO_RULE"]),
        ("ESTABLISHED", "allow RELATED", [OPENED, f"{QUOTE}, reason: ESTABLISHED"]),
        ("allow", "deny UNKNOWN_FRAGMENT", [f"{LATER}, expect: allow"]),
        ("allow", "deny SPOOFED_SOURCE", [f"{FORGED}, expect: allow"]),
        # Between two servers both ends count.
        ("allow", "deny NO_RULE at w2 (ingress)", ["flow: {from: w1, to: w2, protocol: tcp, port: 22}, expect: allow"]),
        ("allow", "deny NO_RULE at l1 (egress)", ["flow: {from: l1, to: w1, protocol: tcp, port: 80}, expect: allow"]),
        # Changes that must be refused, and were not, or otherwise.
        ("ALREADY_EXISTS", "success", ["add_group: {name: new}, error: ALREADY_EXISTS"]),
        ("NOT_FOUND", "ALREADY_EXISTS", ["add_group: {name: web}, error: NOT_FOUND"]),
        ("UNAVAILABLE", "success", ["delete_rule: {rule: http}, error: UNAVAILABLE"]),
        ("NOT_FOUND", "INVALID_ARGUMENT", ["add_rule: {group: web, direction: ingress, protocol: frob}, error: NOT_FOUND"]),
        ("that says 'frob'", "ALREADY_EXISTS", ["add_group: {name: web}, error: ALREADY_EXISTS, error_contains: frob"]),
        ("that names base", "ALREADY_EXISTS", ["add_group: {name: web}, error: ALREADY_EXISTS, error_names: base"]),
        ("that names udp", "ALREADY_EXISTS", [f"{AGAIN}, error: ALREADY_EXISTS, error_names: udp"]),
        # Changes that must succeed, and were refused.
        ("success", "ALREADY_EXISTS", [AGAIN]),
        ("success", "INVALID_ARGUMENT", ["add_rule: {group: web, direction: ingress, protocol: tcp, ports: 70000}"]),
        ("success", "NOT_FOUND", ["delete_rule: {rule: http}", "delete_rule: {rule: http}"]),
        ("success", "NOT_FOUND", ["delete_rule: {group: web, direction: ingress, protocol: tcp, ports: 81}"]),
        ("success", "INVALID_ARGUMENT", ["set_rules: {group: web, rules: [{direction: ingress, protocol: icmp, icmp_code: 1}]}"]),
        ("success", "FAILED_PRECONDITION", ["detach: {server: w1, group: web}"]),
        ("success", "NOT_FOUND", ["detach: {server: w1, group: base}"]),
        ("success", "INVALID_ARGUMENT", ["set_groups: {server: w1, groups: []}"]),
        ("success", "ALREADY_EXISTS", ["add_server: {name: w1, addresses: [10.0.0.9]}"]),
        ("success", "ALREADY_EXISTS", ["set_addresses: {server: w1, addresses: [10.0.0.2]}"]),
        ("success", "ALREADY_EXISTS", ["add_group: {name: web}"]),
        ("success", "FAILED_PRECONDITION", ["delete_group: web"]),
        ("success", "ALREADY_EXISTS", ["rename_group: {group: web, name: base}"]),
        ("success", "UNAVAILABLE", ["stop_controller", ATTACH]),
        ("success", "UNAVAILABLE", ["stop_controller", "remove_server: w1"]),
        # What the clock, a restart and an outage leave.
        ("ESTABLISHED", "deny NO_RULE", [DNS, "advance: 120", "packet: {flow: K, from: l1}, reason: ESTABLISHED"]),
        ("NO_RULE", "allow ESTABLISHED", [DNS, "advance: 119", "packet: {flow: K, from: l1}, reason: NO_RULE"]),
        ("allow", "deny INVALID_STATE", [OPENED, "restart_agent: cold", "packet: {flow: K, from: w1}, expect: allow"]),
        ("deny", "allow ESTABLISHED", [OPENED, "restart_agent: warm", "packet: {flow: K, from: w1}, expect: deny"]),
        ("deny", "allow ESTABLISHED", [OPENED, "stop_controller", "packet: {flow: K, from: w1}, expect: deny"]),
        ("UNAVAILABLE", "success", ["stop_controller", "start_controller", f"{ATTACH}, error: UNAVAILABLE"]),
        # Every change is in force at the next step, or these would not fail.
        ("allow", "deny NO_RULE", ["delete_rule: {rule: http}", f"flow: {{{HTTP}}}, expect: allow"]),
        ("deny", "allow NEW", [OPEN_BASE, "flow: {from: w1, to: w2, protocol: 47}, expect: deny"]),
        ("allow", "deny NO_RULE", ["set_rules: {group: web, rules: []}", f"flow: {{{HTTP}}}, expect: allow"]),
        ("deny", "allow NEW", ["attach: {server: w2, group: web}", f"{HTTP_TO_W2}, expect: deny"]),
        ("allow", "deny NO_RULE", ["set_groups: {server: w1, groups: [base]}", f"flow: {{{HTTP}}}, expect: allow"]),
        ("deny", "allow NEW", ["add_server: {name: w3, addresses: [10.0.0.9], groups: [web]}", f"{TO_W3}, expect: deny"]),
        ("allow", "deny UNKNOWN_SERVER", ["remove_server: w1", f"{TO_OLD}, expect: allow"]),
        ("allow", "deny NOT_LOCAL", ["set_addresses: {server: w1, addresses: [10.0.0.9]}", f"{TO_OLD}, expect: allow"]),
    ],
)  # fmt: skip
def test_a_wrong_expectation_fails_at_its_step(
    worlds: LocalWorlds, tmp_path: Path, expected: str, got: str, wrong: list[str]
) -> None:
    found = outcome(worlds, tmp_path, steps(*wrong, f"{SYN}, expect: allow"))
    assert not found.ok
    assert found.failed_step == len(wrong)
    assert expected in found.expected
    assert got in found.got


def test_a_failed_verdict_comes_with_the_grounds_of_explain(worlds: LocalWorlds, tmp_path: Path) -> None:
    found = outcome(worlds, tmp_path, steps(f"flow: {{{CLOSED}}}, expect: allow"))
    assert found.got == "deny NO_RULE at w1 (ingress)"
    assert found.explain == (
        "no ingress rule of web allows TCP 81 from 203.0.113.9; ingress TCP 80 from anywhere of web: port does not match; "
        "ingress UDP from anywhere of web: protocol does not match"
    )


def test_a_flow_whose_answer_does_not_pass_fails(worlds: LocalWorlds, tmp_path: Path) -> None:
    # The last flow takes its sender the last place in the table, and its receiver takes that away: the answer finds nothing.
    text = """\
- name: one
  settings: {flows_max: 4}
  servers:
    a: {addresses: [10.0.0.1]}
    b: {addresses: [10.0.0.2]}
  steps:
    - {flow: {from: a, to: 203.0.113.1, protocol: udp, port: 53}, expect: allow}
    - {flow: {from: a, to: 203.0.113.2, protocol: udp, port: 53}, expect: allow}
    - {flow: {from: a, to: 203.0.113.3, protocol: udp, port: 53}, expect: allow}
    - {flow: {from: a, to: b, protocol: udp, port: 53}, expect: allow}
"""
    found = outcome(worlds, tmp_path, text)
    assert not found.ok
    assert found.failed_step == 4
    assert found.expected == "allow of its answer too"
    assert found.got == "deny TABLE_FULL at a (ingress)"


@pytest.mark.parametrize(
    ("got", "setup"),
    [
        ("INVALID_ARGUMENT", "  groups: {web: {rules: [{direction: ingress, protocol: icmp, ports: 80}]}}\n"),
        ("ALREADY_EXISTS", "  groups: {web: {rules: [{direction: egress, protocol: any, remote: 0.0.0.0/0}]}}\n"),
        ("ALREADY_EXISTS", "  servers: {a: {addresses: [10.0.0.1]}, b: {addresses: [10.0.0.1]}}\n"),
        ("INVALID_ARGUMENT", '  servers: {" a": {addresses: [10.0.0.1]}}\n'),
    ],
)
def test_a_setup_that_is_refused_fails_before_the_first_step(worlds: LocalWorlds, tmp_path: Path, got: str, setup: str) -> None:
    found = outcome(worlds, tmp_path, f"- name: one\n{setup}")
    assert not found.ok
    assert found.failed_step == 0
    assert got in found.got


def test_what_is_expected_passes(worlds: LocalWorlds, tmp_path: Path) -> None:
    good = [f"{OPENED}, expect: allow, reason: NEW, rule: http", "packet: {flow: K, from: w1}, reason: ESTABLISHED"]
    found = outcome(worlds, tmp_path, steps(*good))
    assert found.ok
    assert found.as_json() == {
        "file": str(tmp_path / "case.yaml"),
        "name": "one",
        "ok": True,
        "failed_step": None,
        "expected": None,
        "got": None,
        "explain": None,
    }


def test_a_refused_group_with_rules_leaves_nothing_behind(worlds: LocalWorlds, tmp_path: Path) -> None:
    refused = "add_group: {name: new, rules: [{direction: ingress, protocol: tcp, remote: {group: nope}}]}, error: NOT_FOUND"
    assert outcome(worlds, tmp_path, steps(refused, refused, "add_group: {name: new}", "attach: {server: w1, group: new}")).ok


class Contradicting(ReferenceEngine):
    """Explains every packet as if no rule allowed it."""

    def explain(self, packet: Packet, now_ns: int) -> Explanation:
        explanation = super().explain(packet, now_ns)
        return replace(explanation, verdict=Verdict(reason=Reason.NO_RULE), text="nothing is allowed")


class Careless(ReferenceEngine):
    """Lets every new flow pass, and says so."""

    def decide(self, packet: Packet, now_ns: int) -> Verdict:
        return Verdict(reason=Reason.NEW)

    def explain(self, packet: Packet, now_ns: int) -> Explanation:
        return replace(super().explain(packet, now_ns), verdict=Verdict(reason=Reason.NEW))


@pytest.mark.parametrize(
    ("engine", "expected", "got", "step"),
    [
        (Contradicting, "what Explain said: deny NO_RULE", "allow NEW by rule ", f"flow: {{{HTTP}}}, expect: allow"),
        (Contradicting, "what Explain said: deny NO_RULE", "allow NEW by rule ", SYN),
        (Careless, "what ExplainFlow said: deny", "allow NEW at w1 (ingress)", f"flow: {{{CLOSED}}}, expect: allow"),
        (Careless, "what ExplainFlow said: allow by rule ", "allow NEW at w1 (ingress)", f"flow: {{{HTTP}}}, expect: allow"),
    ],
)
def test_an_engine_that_contradicts_itself_or_the_controller_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: type[ReferenceEngine], expected: str, got: str, step: str
) -> None:
    monkeypatch.setitem(ENGINES, "wrong", engine)
    with LocalWorlds("wrong") as wrong:
        found = outcome(wrong, tmp_path, steps(step))
    assert (found.ok, found.failed_step) == (False, 1)
    assert expected in found.expected
    assert got in found.got


class Deaf(ReferenceEngine):
    """Never hears of a second rule."""

    def apply(self, update: RulesetUpdate, now_ns: int) -> Applied:
        groups = tuple(replace(group, rules=group.rules[:1]) for group in update.groups)
        return super().apply(replace(update, groups=groups), now_ns)


class Broken(ReferenceEngine):
    """Falls over at every packet."""

    def decide(self, packet: Packet, now_ns: int) -> Verdict:
        raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("engine", "expected", "got"),
    [
        (Deaf, "controller and engine hold the same", "of what is stored now it should hold"),
        (Broken, "no crash", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_engine_that_does_not_enforce_what_is_stored_or_crashes_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: type[ReferenceEngine], expected: str, got: str
) -> None:
    monkeypatch.setitem(ENGINES, "wrong", engine)
    with LocalWorlds("wrong") as wrong:
        found = outcome(wrong, tmp_path, steps(SYN))
    assert (found.ok, found.failed_step, found.expected) == (False, 1, expected)
    assert got in found.got
