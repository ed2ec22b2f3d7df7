"""The ends of the ways: chains that drop a packet, count it by its reason, and tell of it while somebody watches.

There is one for each reason and each direction whose rules are judged by: so what is told of a denied packet says at which of two
servers it was denied. Nothing is told while nobody watches, so that it costs nothing.
"""

from __future__ import annotations

from secgroups.agent.flow import Direction, Reason
from secgroups.agent.kernel.log_prefix import Way, log_prefix
from secgroups.agent.kernel.statements import CONFIRMED, DROP, Command, Table, count, ct, goto, log, match

# Reasons that this backend gives; each has a counter REASON, and a chain deny-DIRECTION-REASON for either end of a connection.
REASONS = (
    Reason.UNKNOWN_SERVER,
    Reason.NO_RULESET,
    Reason.INVALID_PACKET,
    Reason.ROGUE_SERVICE,
    Reason.SPOOFED_SOURCE,
    Reason.NOT_LOCAL,
    Reason.INVALID_STATE,
    Reason.NO_RULE,
    Reason.REVOKED,
)


def deny(reason: Reason, direction: Direction) -> str:
    """Return the chain that drops and counts for ``reason``, found by whoever judges by the rules of ``direction``."""
    return f"deny-{direction.name.lower()}-{reason.name.lower()}"


def deny_judged(direction: Direction) -> str:
    """Return the chain that drops what no rule of ``direction`` allows."""
    return f"deny-{direction.name.lower()}-judged"


def denials(table: Table, log_group: int | None) -> list[Command]:
    """Return the commands for all these chains and their counters, told to ``log_group`` if it is not None."""
    commands = [table.add_counter(reason.name.lower()) for reason in REASONS]
    for direction in Direction:
        for reason in REASONS:
            commands += [table.add_chain(deny(reason, direction)), *_denial(table, log_group, reason, direction)]
        judged = deny_judged(direction)
        before, never = goto(deny(Reason.REVOKED, direction)), goto(deny(Reason.NO_RULE, direction))
        commands += [
            table.add_chain(judged),
            table.add_rule(judged, "a connection that was allowed before", CONFIRMED, before),
            table.add_rule(judged, "no rule allows it", never),
        ]
    return commands


def denials_told(table: Table, log_group: int | None) -> list[Command]:
    """Return the commands after which the chains that are there tell of denials to ``log_group``, or to nobody if it is None."""
    commands = []
    for direction in Direction:
        for reason in REASONS:
            commands += [table.flush_chain(deny(reason, direction)), *_denial(table, log_group, reason, direction)]
    return commands


def _denial(table: Table, log_group: int | None, reason: Reason, direction: Direction) -> list[Command]:
    chain, end = deny(reason, direction), (count(reason.name.lower()), DROP)
    if log_group is None:
        return [table.add_rule(chain, reason.name, *end)]
    is_reply, reply = match(ct("direction"), "reply"), log(log_prefix(direction, reason, Way.REPLY), log_group)
    return [
        table.add_rule(chain, f"{reason.name} of a reply, told", is_reply, reply, *end),
        table.add_rule(chain, f"{reason.name}, told", log(log_prefix(direction, reason), log_group), *end),
    ]
