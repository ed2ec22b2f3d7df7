"""What a case file may say, and that each mistake is shown with its line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from secgroups.lab.cases.loader import load, load_file
from secgroups.lab.cases.model import (
    AddressEnd,
    CidrRemote,
    DeleteEqualRule,
    DeleteRule,
    Flow,
    FlowPacket,
    GroupRemote,
    LoosePacket,
    Protocol,
    Ref,
    RuleText,
    StartController,
    StopController,
    Unparsable,
)
from secgroups.lab.cases.nodes import CaseFileError

SETUP = """\
- name: one
  groups:
    web: {rules: [{direction: ingress, protocol: tcp, ports: 80, as: http}]}
  servers:
    w1: {addresses: [10.0.0.1, "2001:db8::1"], groups: [web]}
    w2: {addresses: [10.0.0.2], groups: [web]}
  steps:
"""


def written(tmp_path: Path, text: str) -> str:
    file = tmp_path / "cases.yaml"
    file.write_text(text)
    return str(file)


def problems(tmp_path: Path, text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(CaseFileError) as caught:
        load_file(written(tmp_path, text))
    return [(problem.line, problem.field, problem.message) for problem in caught.value.problems]


def actions(tmp_path: Path, steps: str) -> list[object]:
    (case,) = load_file(written(tmp_path, SETUP + steps))
    return [step.action for step in case.steps]


@pytest.mark.parametrize(
    ("line", "field", "message", "text"),
    [
        (2, "", "is no YAML", "- name: [\n- b"),
        (1, "", "is empty", ""),
        (1, "", "is empty", "# nothing but a comment"),
        (1, "", "no cases", "[]"),
        (1, "", "must be a list", "name: one"),
        (1, "[0]", "must be a mapping", "- one"),
        (1, "[0]", "name is missing", "- project: p"),
        (1, "[0].name", "must be a text", "- name: [one]"),
        (1, "[0].name", "must have a name", '- name: ""'),
        (2, "[0].nane", "unknown key nane", "- name: one\n  nane: two"),
        (2, "[0].name", "stands twice", "- name: one\n  name: two"),
        (2, "[1].name", "first in line 1", "- name: one\n- name: one"),
        (2, "[0].settings.flow_max", "unknown key", "- name: one\n  settings: {flow_max: 4}"),
        (2, "[0].settings.flows_max", "whole number from 4", "- name: one\n  settings: {flows_max: 3}"),
        (2, "[0].settings.flows_max", "whole number", "- name: one\n  settings: {flows_max: many}"),
        (2, "[0].settings.essential_services", "true or false", "- name: one\n  settings: {essential_services: 2}"),
        (2, "[0].groups", "must be a mapping", "- name: one\n  groups: [web]"),
        (3, "[0].groups.web.rule", "unknown key rule", "- name: one\n  groups:\n    web: {rule: []}"),
        (2, "[0].groups.web.egress", "one of none", "- name: one\n  groups: {web: {egress: all}}"),
        (2, "[0].groups.web", "stands twice", "- name: one\n  groups: {web: {}, web: {}}"),
        (2, "[0].groups.web.rules[0]", "direction is missing", "- name: one\n  groups: {web: {rules: [{protocol: tcp}]}}"),
        (2, "[0].groups.web.rules[0]", "protocol is missing", "- name: one\n  groups: {web: {rules: [{direction: egress}]}}"),
        (2, "[0].servers.w1", "addresses is missing", "- name: one\n  servers: {w1: {}}"),
        (2, "[0].servers.w1.addresses", "must be a list", "- name: one\n  servers: {w1: {addresses: 10.0.0.1}}"),
        (2, "[0].servers.w1.addresses", "at least one", "- name: one\n  servers: {w1: {addresses: []}}"),
        (2, "[0].servers.w1.addresses[0]", "is no address", "- name: one\n  servers: {w1: {addresses: [frob]}}"),
        (2, "[0].servers.w1.groups", "no group web", "- name: one\n  servers: {w1: {addresses: [10.0.0.1], groups: [web]}}"),
        (2, "[0].steps", "must be a list", "- name: one\n  steps: {}"),
    ],
)
def test_a_mistake_in_a_case_is_shown_with_its_line_and_field(
    tmp_path: Path, line: int, field: str, message: str, text: str
) -> None:
    (found,) = problems(tmp_path, text)
    assert found[:2] == (line, field)
    assert message in found[2]


FLOW = "from: 203.0.113.9, to: w1, protocol: tcp"


@pytest.mark.parametrize(
    ("field", "message", "step"),
    [
        # Verbs and keys.
        ("", "one verb; this one has none", "{note: nothing}"),
        ("", "one verb; this one has attach and detach", "{attach: {server: w1, group: web}, detach: {server: w1, group: web}}"),
        (".atach", "unknown key atach", "{atach: {server: w1, group: web}}"),
        ("", "must be one of stop_controller", "stop"),
        (".attach.servr", "unknown key servr", "{attach: {servr: w1, group: web}}"),
        (".attach", "group is missing", "{attach: {server: w1}}"),
        (".flow", "from is missing", "{flow: {to: w1, protocol: tcp, port: 80}}"),
        (".open", "as is missing", f"{{open: {{{FLOW}, port: 80}}}}"),
        (".flow.as", "unknown key as", f"{{flow: {{as: K, {FLOW}, port: 80}}}}"),
        (".expect", "must be one of allow, deny", f"{{flow: {{{FLOW}, port: 80}}, expect: pass}}"),
        (".expect", "a step with attach has no expect", "{attach: {server: w1, group: default}, expect: allow}"),
        (".error", "a step with flow has no error", f"{{flow: {{{FLOW}, port: 80}}, error: NOT_FOUND}}"),
        (".error", "a step with advance has no error", "{advance: 5, error: NOT_FOUND}"),
        (".error", "must be one of", "{delete_group: web, error: NOT_THERE}"),
        (".error_contains", "needs error", "{delete_group: web, error_contains: web}"),
        (".reason", "must be one of", f"{{flow: {{{FLOW}, port: 80}}, reason: NO_RULES}}"),
        (".reason", "a reason to deny, not to allow", f"{{flow: {{{FLOW}, port: 80}}, expect: allow, reason: NO_RULE}}"),
        (".advance", "number of seconds", "{advance: soon}"),
        (".advance", "number of seconds", "{advance: -1}"),
        (".restart_agent", "one of warm, cold", "{restart_agent: hot}"),
        ("", "the controller is running already", "start_controller"),
        # Values that no packet has.
        (".flow.protocol", "tcp, udp, icmp, any or a number", "{flow: {from: w1, to: w2, protocol: frob}}"),
        (".flow.protocol", "a packet is of one protocol", "{flow: {from: w1, to: w2, protocol: any}}"),
        (".flow.protocol", "a packet is of one protocol", "{flow: {from: w1, to: w2, protocol: 256}}"),
        (".flow.port", "whole number from 0 to 65535", f"{{flow: {{{FLOW}, port: 65536}}}}"),
        (".flow", "port is missing", f"{{flow: {{{FLOW}}}}}"),
        (".flow.port", "has no ports", "{flow: {from: w1, to: w2, protocol: icmp, port: 8}}"),
        (".flow.icmp_type", "is not ICMP", f"{{flow: {{{FLOW}, port: 80, icmp_type: 8}}}}"),
        (".packet.icmp_type", "whole number from 0 to 255", "{packet: {from: w1, to: w2, protocol: icmp, icmp_type: 256}}"),
        (".packet", "tcp_flags is missing", f"{{packet: {{{FLOW}, port: 80}}}}"),
        (".packet.tcp_flags", "only TCP has flags", "{packet: {from: w1, to: w2, protocol: udp, port: 5, tcp_flags: [syn]}}"),
        (".packet.tcp_flags[0]", "must be one of fin, syn", f"{{packet: {{{FLOW}, port: 80, tcp_flags: [SYN]}}}}"),
        (".packet.tcp_flags", "must be a list", f"{{packet: {{{FLOW}, port: 80, tcp_flags: syn}}}}"),
        (".packet.fragment", "one of first, later", f"{{packet: {{{FLOW}, port: 80, tcp_flags: [syn], fragment: last}}}}"),
        (".packet", "protocol is missing", "{packet: {from: w1, to: w2}}"),
        # References.
        (".flow.from", "w9 is neither an address nor a server", "{flow: {from: w9, to: w1, protocol: icmp}}"),
        (".flow.to", "10.0.0.300 is neither", "{flow: {from: w1, to: 10.0.0.300, protocol: icmp}}"),
        (".flow.to", "q/w1 is neither", "{flow: {from: w1, to: q/w1, protocol: icmp}}"),
        (".flow.from", "neither end is a server", "{flow: {from: 203.0.113.9, to: 203.0.113.8, protocol: icmp}}"),
        (".flow.from", "10.0.0.1 belongs to server w1", "{flow: {from: 10.0.0.1, to: w2, protocol: icmp}}"),
        (".flow.to", "2001:db8::1 belongs to server w1", '{flow: {from: w1, to: "2001:db8:0::1", protocol: icmp}}'),
        (".packet.from", "10.0.0.2 belongs to server w2", "{packet: {from: 10.0.0.2, to: w1, protocol: icmp}}"),
        (".flow.to", "no address of the same family", '{flow: {from: "2001:db8::9", to: w2, protocol: icmp}}'),
        (".flow.from", "10.0.0.2 is not an address of", "{flow: {from: {server: w1, address: 10.0.0.2}, to: w2, protocol: 47}}"),
        (".packet.at", "say the direction", "{packet: {from: 10.9.9.9, to: 203.0.113.9, protocol: icmp, at: w1}}"),
        (".packet.at", "w9 is neither", "{packet: {from: 10.9.9.9, to: 203.0.113.9, protocol: icmp, at: w9, direction: egress}}"),
        (".packet.flow", "no flow K was opened before", "{packet: {flow: K, from: w1}}"),
        (".packet.quotes", "no flow K was opened before", "{packet: {from: 203.0.113.9, to: w1, quotes: {flow: K}}}"),
        (".attach.server", "no server w9", "{attach: {server: w9, group: web}}"),
        (".attach.group", "no group nope", "{attach: {server: w1, group: nope}}"),
        (".set_groups.groups", "no group nope", "{set_groups: {server: w1, groups: [web, nope]}}"),
        (".add_rule.group", "no group nope", "{add_rule: {group: nope, direction: ingress, protocol: tcp}}"),
        (".add_rule.remote", "no group nope", "{add_rule: {group: web, direction: ingress, protocol: tcp, remote: {group: nope}}}"),
        (".delete_rule.rule", "no rule was given the name R", "{delete_rule: {rule: R}}"),
        (".remove_server", "no server w9", "{remove_server: w9}"),
        (".delete_group", "no group nope", "{delete_group: nope}"),
        (".flow", "rule R: no rule was given this name", f"{{flow: {{{FLOW}, port: 80}}, rule: R}}"),
        (".delete_group", "error_names nope", "{delete_group: web, error: FAILED_PRECONDITION, error_names: nope}"),
        # Values that can't be parsed, where no refusal is expected.
        (".add_rule.ports", "must be a port or a range", "{add_rule: {group: web, direction: ingress, protocol: tcp, ports: a-b}}"),
        (".add_rule.ports", "must be a port or a range", "{add_rule: {group: web, direction: ingress, protocol: tcp, ports: 2.5}}"),
        (".add_rule.protocol", "tcp, udp, icmp, any or a number", "{add_rule: {group: web, direction: ingress, protocol: frob}}"),
        (".add_rule.direction", "one of ingress, egress", "{add_rule: {group: web, direction: in, protocol: tcp}}"),
        (".add_rule.remote", "must be any, a CIDR", "{add_rule: {group: web, direction: ingress, protocol: tcp, remote: web}}"),
        (".add_rule.icmp_type", "whole number", "{add_rule: {group: web, direction: ingress, protocol: icmp, icmp_type: -1}}"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_step_is_shown_with_its_line_and_field(tmp_path: Path, field: str, message: str, step: str) -> None:
    (found,) = problems(tmp_path, f"{SETUP}    - advance: 1\n    - {step}\n")
    assert found[0] == 9
    assert found[1] == f"[0].steps[1]{field}"
    assert message in found[2]


def test_the_end_of_a_flow_must_be_named_as_it_is(tmp_path: Path) -> None:
    opened = f"{SETUP}    - open: {{as: K, from: 203.0.113.9, to: w1, protocol: tcp, port: 80}}\n"
    assert len(load_file(written(tmp_path, f"{opened}    - packet: {{flow: K, from: 203.0.113.9}}\n"))[0].steps) == 2
    for sender, message in [("10.0.0.1", "belongs to server w1"), ("w2", "w2 is not an end"), ("203.0.113.8", "is not an end")]:
        ((line, field, found),) = problems(tmp_path, f"{opened}    - packet: {{flow: K, from: {sender}}}\n")
        assert (line, field) == (9, "[0].steps[1].packet.from")
        assert message in found


@pytest.mark.parametrize(
    "change",
    [
        "add_rule: {group: web, direction: ingress, protocol: tcp, ports: a-b}",
        "add_rule: {group: web, direction: ingress, protocol: tcp, ports: 80-0}",
        "add_rule: {group: web, direction: ingress, protocol: frob}",
        "add_rule: {group: web, direction: ingress, protocol: icmp, icmp_type: -1}",
        "add_rule: {group: web, direction: sideways, protocol: tcp}",
        "add_rule: {group: web, protocol: tcp}",
        "add_rule: {group: web, direction: ingress}",
        "delete_rule: {group: web, direction: ingress, protocol: frob}",
        "set_rules: {group: web, rules: [{direction: ingress, protocol: tcp, ports: [80, 81]}]}",
        "add_group: {name: new, rules: [{direction: ingress, protocol: frob}]}",
    ],
)
def test_a_value_that_cant_be_parsed_is_a_refusal_where_one_is_expected(tmp_path: Path, change: str) -> None:
    (action,) = actions(tmp_path, f"    - {{{change}, error: INVALID_ARGUMENT}}\n")
    assert isinstance(action, Unparsable)
    assert problems(tmp_path, f"{SETUP}    - {{{change}}}\n")


@pytest.mark.parametrize(
    "change",
    [
        "attach: {server: w9, group: nope}",
        "delete_rule: {rule: R}",
        "delete_rule: {group: nope, direction: ingress, protocol: tcp}",
        "add_rule: {group: web, direction: ingress, protocol: tcp, remote: 10.0.0.0/255.0.0.0}",
        "add_server: {name: w3}",
        "add_server: {name: w3, addresses: [frob]}",
        "set_addresses: {server: w1, addresses: []}",
        "rename_group: {group: nope, name: a/b}",
    ],
)
def test_what_the_controller_can_refuse_is_left_to_it_where_a_refusal_is_expected(tmp_path: Path, change: str) -> None:
    (action,) = actions(tmp_path, f"    - {{{change}, error: NOT_FOUND}}\n")
    assert not isinstance(action, Unparsable)


def test_what_is_there_is_followed_through_the_steps(tmp_path: Path) -> None:
    good = """\
    - add_group: {name: new, rules: [{direction: ingress, protocol: tcp, remote: {group: new}}]}
    - add_server: {name: w3, addresses: [10.0.0.3], groups: [new]}
    - attach: {server: w3, group: WEB, note: 1}
"""
    ((line, field, message),) = problems(tmp_path, SETUP + good)
    assert (line, field) == (10, "[0].steps[2].attach.note")
    good = good.replace(", note: 1", "").replace("WEB", "web")
    more = """\
    - rename_group: {group: new, name: newer}
    - set_addresses: {server: w1, addresses: [10.0.0.4]}
    - flow: {from: 10.0.0.1, to: w3, protocol: icmp}
    - remove_server: w2
    - flow: {from: 10.0.0.2, to: w3, protocol: icmp}
    - packet: {from: 203.0.113.9, to: 10.0.0.2, protocol: icmp, at: w2}
"""
    assert len(load_file(written(tmp_path, SETUP + good + more))[0].steps) == 9
    ((line, field, message),) = problems(tmp_path, SETUP + good + more + "    - attach: {server: w3, group: new}\n")
    assert (line, message) == (17, "there is no group new")
    ((line, field, message),) = problems(tmp_path, SETUP + good + more + "    - attach: {server: w2, group: web}\n")
    assert (line, message) == (17, "server w2 was removed")
    ((line, field, message),) = problems(tmp_path, SETUP + good + more + "    - flow: {from: 10.0.0.4, to: w3, protocol: icmp}\n")
    assert (line, field) == (17, "[0].steps[9].flow.from")


def test_a_change_that_is_to_be_refused_changes_nothing_of_what_is_known(tmp_path: Path) -> None:
    steps = "    - {add_group: {name: default}, error: ALREADY_EXISTS}\n    - {remove_server: w1, error: UNAVAILABLE}\n"
    assert len(load_file(written(tmp_path, f"{SETUP}{steps}    - attach: {{server: w1, group: web}}\n"))[0].steps) == 3


def test_every_mistake_of_every_case_and_file_is_shown(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("- name: one\n  groups: {web: {rule: []}}\n  servers: {w1: {}}\n  steps: [frob]\n- nome: two\n")
    second.write_text("- name: [\n")
    with pytest.raises(CaseFileError) as caught:
        load([str(first), str(second), str(tmp_path / "nowhere.yaml")])
    shown = [(problem.file.rpartition("/")[2], problem.line) for problem in caught.value.problems]
    assert shown == [("a.yaml", 2), ("a.yaml", 3), ("a.yaml", 4), ("a.yaml", 5), ("b.yaml", 2), ("nowhere.yaml", 0)]
    assert str(caught.value.problems[0]).startswith(f"{first}:2: [0].groups.web.rule: ")


def test_a_folder_is_no_case_file(tmp_path: Path) -> None:
    with pytest.raises(CaseFileError, match="can't be read"):
        load([str(tmp_path)])


def test_anchors_and_merges_are_read_as_if_written_out(tmp_path: Path) -> None:
    steps = """\
    - flow: &ping {from: 203.0.113.9, to: w1, protocol: icmp}
    - flow: *ping
    - flow: {<<: *ping, from: 203.0.113.8}
    - &again {flow: *ping, expect: deny}
    - *again
"""
    first, second, third, fourth, fifth = actions(tmp_path, steps)
    assert first == second == fourth == fifth
    assert isinstance(third, Flow)
    assert str(third.source) == "203.0.113.8"


@pytest.mark.parametrize("merged", ["*a", "[*a]", "[&b {<<: [*a]}, *b]"])
def test_a_file_that_holds_itself_is_refused(tmp_path: Path, merged: str) -> None:
    with pytest.raises(CaseFileError, match="nested too deeply"):
        load_file(written(tmp_path, f"- &a\n  name: one\n  <<: {merged}\n"))


@pytest.mark.parametrize("twice", ["<<: [*a{0}, *a{0}]", "<<: *a{0}, <<: *a{0}"])
def test_merges_that_double_with_each_line_are_read_once(tmp_path: Path, twice: str) -> None:
    """Written out this file would hold a million million copies of the first mapping."""
    lines = ["- &a0 {name: n0, project: p}", *(f"- &a{at} {{{twice.format(at - 1)}, name: n{at}}}" for at in range(1, 40))]
    cases = load_file(written(tmp_path, "\n".join(lines)))
    assert [(case.name, case.project) for case in cases] == [(f"n{at}", "p") for at in range(40)]


def test_of_merges_the_earlier_wins_also_where_the_later_was_merged_by_it(tmp_path: Path) -> None:
    merged = "- &low {name: low, project: low}\n- &high {<<: *low, name: high}\n- {<<: [*high, *low]}\n"
    with pytest.raises(CaseFileError, match="case 'high' stands twice"):
        load_file(written(tmp_path, merged))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("protocol: tcp, ports: 22", {"protocol": Protocol.TCP, "ports": (22, 22)}),
        ('protocol: tcp, ports: "22"', {"protocol": Protocol.TCP, "ports": (22, 22)}),
        ('protocol: UDP, ports: "8080-8090"', {"protocol": Protocol.UDP, "ports": (8080, 8090)}),
        ("protocol: udp, ports: 8080-8090", {"protocol": Protocol.UDP, "ports": (8080, 8090)}),
        ("protocol: 132", {"protocol": 132}),
        ('protocol: "132"', {"protocol": 132}),
        ("protocol: icmp, icmp_type: 3, icmp_code: 4", {"protocol": Protocol.ICMP, "icmp_type": 3, "icmp_code": 4}),
        ("protocol: any, remote: any", {"protocol": Protocol.ANY}),
        ("protocol: any, remote: 10.0.0.7", {"protocol": Protocol.ANY, "remote": CidrRemote("10.0.0.7")}),
        ("protocol: any, remote: 2001:db8::/32", {"protocol": Protocol.ANY, "remote": CidrRemote("2001:db8::/32")}),
        ("protocol: any, remote: {group: web}", {"protocol": Protocol.ANY, "remote": GroupRemote(Ref(None, "web"))}),
        ("protocol: any, remote: {group: p/web}", {"protocol": Protocol.ANY, "remote": GroupRemote(Ref("p", "web"))}),
        ("protocol: tcp, as: R", {"protocol": Protocol.TCP, "alias": "R"}),
    ],
)
def test_a_rule_is_read_as_it_is_written(tmp_path: Path, keys: str, expected: dict[str, object]) -> None:
    (action,) = actions(tmp_path, f"    - set_rules: {{group: web, rules: [{{direction: ingress, {keys}}}]}}\n")
    assert action.rules == (RuleText(direction="ingress", **expected),)  # type: ignore[attr-defined, arg-type]


def test_each_form_of_a_verb_is_told_from_the_others(tmp_path: Path) -> None:
    read = actions(
        tmp_path,
        """\
    - open: {as: K, from: {server: w1, address: 10.0.0.1}, to: w2, protocol: tcp, port: 80}
    - packet: {flow: K, from: w2, tcp_flags: [syn, ack], fragment: first, ip_id: 7}
    - packet: {from: 203.0.113.9, to: w1, protocol: icmp, quotes: {flow: K}}
    - packet: {from: 203.0.113.9, to: w1, protocol: 0}
    - delete_rule: {rule: http}
    - delete_rule: {group: web, direction: ingress, protocol: 6, ports: 80}
    - stop_controller
    - note: written out
      start_controller: {}
""",
    )
    kinds = [Flow, FlowPacket, LoosePacket, LoosePacket, DeleteRule, DeleteEqualRule, StopController, StartController]
    assert [type(action) for action in read] == kinds
    assert read[1] == FlowPacket(flow="K", sender=read[1].sender, tcp_flags=("syn", "ack"), fragment="first", ip_id=7)  # type: ignore[attr-defined]
    assert read[3].protocol == 0  # type: ignore[attr-defined]
    assert isinstance(read[2].source, AddressEnd)  # type: ignore[attr-defined]


def test_an_address_of_a_server_may_stand_where_one_server_alone_judges(tmp_path: Path) -> None:
    steps = "    - packet: {from: 10.0.0.2, to: 203.0.113.9, protocol: icmp, at: w1, direction: egress}\n"
    (action,) = actions(tmp_path, steps)
    assert isinstance(action, LoosePacket)


def test_an_address_of_another_projects_server_is_a_stranger(tmp_path: Path) -> None:
    text = "- name: one\n  servers: {w1: {addresses: [10.0.0.1]}, q/w2: {addresses: [10.0.0.2]}}\n  steps:\n"
    assert load_file(written(tmp_path, f"{text}    - flow: {{from: 10.0.0.2, to: w1, protocol: icmp}}\n"))
    ((line, field, _),) = problems(tmp_path, f"{text}    - flow: {{from: 10.0.0.2, to: q/w2, protocol: icmp}}\n")
    assert (line, field) == (4, "[0].steps[0].flow.from")
