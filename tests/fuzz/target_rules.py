"""What is said of a rule: a message of the API, or words of a file or of options.

Whoever takes a rule gives it back as it was, and whoever comes after takes it: sgctl no rule that the controller refuses, the
controller none that an agent can't enforce.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from choices import Choices

from secgroups.agent import convert as agent_convert
from secgroups.cli import drafts, rule_messages
from secgroups.cli.errors import FieldError
from secgroups.controller import convert
from secgroups.controller.errors import InvalidError
from secgroups.controller.model import RuleSpec, check_name, parse_server_address, rule_text
from secgroups.controller.store.records import spec_of, spec_record, to_json
from secgroups.v1 import agent_service_pb2 as agents_pb
from secgroups.v1 import types_pb2 as types

_TEXTS = (
    *("ingress", "egress", "INGRESS", "any", "tcp", "udp", "icmp", "sctp", "0", "1", "6", "17", "47", "58", "132", "255", "256"),
    *("07", "22", "1-65535", "80-90", "90-80", "all", "0", "65536", "22-", "-", "\u0661", "1_0", "8", "10.0.0.0/8", "10.0.0.1"),
    *("0.0.0.0/0", "::/0", "2001:db8::/33", "::ffff:10.0.0.1", "::ffff:0:0/96", "fe80::1%eth0", "10.0.0.0/255.0.0.0"),
    *("10.0.0.0/08", "010.0.0.1", "a/b", "web", "default", "DEFAULT", "", " ", "a" * 128, "a" * 129, "d" * 513, "\udcff", "\x00"),
    *("\u017f", "x\u200b", "0f8fad5b-d9cb"),
)
WORDS = [text.encode(errors="surrogateescape") for text in _TEXTS if text]
SEEDS = [bytes([kind, *range(at, at + 40)]) for kind in (0, 1, 2) for at in range(0, 200, 25)]


def run(data: bytes) -> None:
    choices = Choices(data)
    match choices.below(3):
        case 0:
            _say_to_the_api(choices)
        case 1:
            _say_in_words(choices)
        case _:
            _name(choices)


def _say_to_the_api(choices: Choices) -> None:
    message = types.RuleSpec()
    choices.fill(message, [text for text in _TEXTS if text.isprintable()])
    try:
        spec = convert.spec_of(message)
    except InvalidError as error:
        assert error.violations
        return
    _check_kept_and_enforced(spec)


def _check_kept_and_enforced(spec: RuleSpec) -> None:
    message = convert.spec_message(spec)
    assert convert.spec_of(types.RuleSpec.FromString(message.SerializeToString())) == spec
    assert spec_of(json.loads(to_json(spec_record(spec)))) == spec
    assert rule_text(spec, None)
    told = agents_pb.GroupRules(group_id="g", version=1, name="n")
    convert.fill_spec(told.rules.add(id="r").spec, spec)
    enforced = agent_convert.group_message(agent_convert.group_rules(told)).rules[0].spec
    assert convert.spec_of(enforced).identity == spec.identity
    shown = rule_messages.draft_of(message, {})
    assert convert.spec_of(rule_messages.spec_of(shown, str)).identity == spec.identity


def _say_in_words(choices: Choices) -> None:
    def word() -> str:
        if choices.chance(8):
            # As the arguments of a command come: what is no UTF-8 in them is there still.
            return choices.take(choices.below(24)).decode(errors="surrogateescape")
        return choices.pick(_TEXTS)

    try:
        draft = drafts.RuleDraft(
            direction=drafts.parse_direction(choices.pick(_TEXTS[:2]) if choices.chance(2) else word()),
            protocol=drafts.parse_protocol(choices.pick(_TEXTS[3:8]) if choices.chance(2) else word()),
            ports=drafts.parse_ports(word()) if choices.chance(2) else None,
            icmp_type=drafts.parse_octet(word(), "icmp_type") if choices.chance(4) else None,
            icmp_code=drafts.parse_octet(word(), "icmp_code") if choices.chance(4) else None,
            remote=choices.pick((_anywhere, drafts.parse_cidr, _group))(word()),
            description=word() if choices.chance(2) else "",
        )
    except FieldError as error:
        assert error.field
        return
    assert draft.text
    list(draft.risks())
    spec = convert.spec_of(rule_messages.spec_of(draft, str))
    _check_kept_and_enforced(spec)
    assert rule_messages.draft_of(convert.spec_message(spec), {}).identity == draft.identity


def _anywhere(_: str) -> drafts.Remote:
    return drafts.ANYWHERE


def _group(text: str) -> drafts.Remote:
    return drafts.Remote("group", drafts.parse_name(text, "group"))


def _name(choices: Choices) -> None:
    """Names and addresses: both sides take the same."""
    text = choices.pick(_TEXTS) if choices.chance(4) else choices.rest().decode(errors="replace")
    assert _takes(drafts.parse_name, text, FieldError) == _takes(check_name, text, InvalidError)
    try:
        address = parse_server_address(text, "addresses")
    except InvalidError:
        return
    assert parse_server_address(str(address), "addresses") == address


def _takes(parse: Callable[[str, str], object], text: str, refusal: type[Exception]) -> bool:
    try:
        parse(text, "name")
    except refusal:
        return False
    return True
