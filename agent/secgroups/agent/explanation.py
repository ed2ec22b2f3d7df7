"""A decision in words, and the rules that nearly allowed what none allows."""

from __future__ import annotations

from dataclasses import dataclass

from secgroups.agent.effective import EffectiveRule, EffectiveRuleset, Opening
from secgroups.agent.flow import (
    ICMP,
    ICMPV6,
    PROTOCOLS_WITH_PORTS,
    SCTP,
    TCP,
    UDP,
    Direction,
    Explanation,
    Fragment,
    NearMiss,
    Packet,
    Reason,
    Verdict,
)
from secgroups.agent.ruleset import Ruleset
from secgroups.agent.tcp import FlowState

NEAREST_MAX = 5

# Nearest first: a wrong remote or port is a slip of policy, another protocol hardly the same wish.
_FIELDS = {
    "remote": "remote does not match",
    "ports": "port does not match",
    "icmp_code": "ICMP code does not match",
    "icmp_type": "ICMP type does not match",
    "protocol": "protocol does not match",
}
_NEARNESS = {name: rank for rank, name in enumerate(_FIELDS)}
_PROTOCOL_NAMES = {ICMP: "ICMP", ICMPV6: "ICMP", TCP: "TCP", UDP: "UDP", SCTP: "SCTP", None: "any"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an engine found. ``state`` is that of the flow concerned, ``grounds`` are those of rows 3, 4, 9 and 10."""

    verdict: Verdict
    step: int
    group_id: str = ""
    state: FlowState | None = None
    grounds: str = ""


def describe_rule(found: EffectiveRule, ruleset: Ruleset) -> str:
    """Return a rule as people say it: ``ingress TCP 22 from 203.0.113.0/24 of web-servers``."""
    rule = found.rule
    words = [rule.direction.name.lower(), _PROTOCOL_NAMES.get(rule.protocol, f"protocol {rule.protocol}")]
    if rule.ports is not None:
        first, last = rule.ports
        words.append(str(first) if first == last else f"{first}-{last}")
    if rule.icmp_type is not None:
        words.append(f"type {rule.icmp_type}")
    if rule.icmp_code is not None:
        words.append(f"code {rule.icmp_code}")
    words.append("from" if rule.direction is Direction.INGRESS else "to")
    if rule.remote is None:
        words.append("anywhere")
    elif isinstance(rule.remote, str):
        words.append(f"group {_group_name(rule.remote, ruleset)}")
    else:
        words.append(str(rule.remote))
    return f"{' '.join(words)} of {_group_name(found.group_id, ruleset)}"


def explained(packet: Packet, decision: Decision, ruleset: Ruleset, effective: EffectiveRuleset | None) -> Explanation:
    """Return ``decision`` of ``packet`` with its grounds; ``effective`` is None for a server that is not known."""
    # A later fragment shows neither ports nor types: what it lacks would be told as what fails.
    is_unruled = decision.verdict.reason is Reason.NO_RULE and packet.fragment is not Fragment.LATER
    return Explanation(
        verdict=decision.verdict,
        step=decision.step,
        group_id=decision.group_id,
        group_name=_group_name(decision.group_id, ruleset) if decision.group_id else "",
        nearest=_nearest(Opening.of(packet), effective, ruleset) if effective and is_unruled else (),
        text=_text(packet, decision, ruleset, effective),
    )


def _group_name(group_id: str, ruleset: Ruleset) -> str:
    group = ruleset.groups.get(group_id)
    return group.name if group else group_id


def _nearest(opening: Opening, effective: EffectiveRuleset, ruleset: Ruleset) -> tuple[NearMiss, ...]:
    misses = []
    for found in effective.rules():
        failures = list(found.failures(opening))
        if found.rule.direction is opening.direction and len(failures) == 1:
            text = f"{describe_rule(found, ruleset)}: {_FIELDS[failures[0]]}"
            misses.append(NearMiss(rule_id=found.rule.id, group_id=found.group_id, failed=failures[0], text=text))
    misses.sort(key=lambda miss: (_NEARNESS[miss.failed], miss.rule_id))
    return tuple(misses[:NEAREST_MAX])


def _text(packet: Packet, decision: Decision, ruleset: Ruleset, effective: EffectiveRuleset | None) -> str:
    rule = _find_rule_text(decision.verdict.rule_id, ruleset, effective)
    state = f" in state {decision.state.value}" if decision.state else ""
    way = packet.direction.name.lower()
    if decision.step == 7 and decision.verdict.reason is not Reason.UNKNOWN_FRAGMENT:
        return f"a later fragment gets what its first fragment got: {decision.verdict.reason.name}"
    texts = {
        Reason.NEW: f"allowed by {rule}" + ("" if decision.verdict.opened else "; it has no replies and opens no flow"),
        Reason.ESTABLISHED: f"belongs to a flow{state}, which is allowed by {rule}",
        Reason.RELATED: f"an ICMP error about a flow which is allowed by {rule}",
        Reason.ESSENTIAL: f"essential service: {decision.grounds}",
        Reason.UNKNOWN_SERVER: f"server {packet.server} is not guarded by this agent",
        Reason.NO_RULESET: f"the rules of a group of server {packet.server} are not in force yet",
        Reason.INVALID_PACKET: f"impossible packet: {decision.grounds}",
        Reason.ROGUE_SERVICE: f"a server may not act as {decision.grounds}",
        Reason.SPOOFED_SOURCE: f"{packet.source} is not an address of server {packet.server}",
        Reason.NOT_LOCAL: f"{packet.destination} is not an address of server {packet.server}",
        Reason.UNKNOWN_FRAGMENT: "a later fragment whose first fragment was not seen in the last 30 s under the rules in force",
        Reason.INVALID_STATE: decision.grounds,
        Reason.NO_RULE: f"no {way} rule of {_groups_text(effective, ruleset)} allows {_packet_text(packet)}",
        Reason.TABLE_FULL: f"allowed by a rule, but there is no room for one more flow of server {packet.server}",
        Reason.REVOKED: f"belongs to a flow that is no longer allowed; it last was by {rule}",
    }
    return texts[decision.verdict.reason]


def _find_rule_text(rule_id: str, ruleset: Ruleset, effective: EffectiveRuleset | None) -> str:
    for found in effective.rules() if effective else ():
        if found.rule.id == rule_id:
            return describe_rule(found, ruleset)
    return f"rule {rule_id}, which is gone" if rule_id else "a rule that is not remembered"


def _groups_text(effective: EffectiveRuleset | None, ruleset: Ruleset) -> str:
    return ", ".join(effective.group_names if effective else ()) or "no group at all"


def _packet_text(packet: Packet) -> str:
    what = _PROTOCOL_NAMES.get(packet.protocol, f"protocol {packet.protocol}")
    if packet.protocol in PROTOCOLS_WITH_PORTS:
        what += f" {packet.destination_port}"
    elif packet.protocol in (ICMP, ICMPV6):
        what += f" type {packet.icmp_type} code {packet.icmp_code}"
    return f"{what} {'from' if packet.direction is Direction.INGRESS else 'to'} {packet.remote}"
