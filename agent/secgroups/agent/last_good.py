"""What the last good version of a rejected object needs, so that it goes on to work while the controller has moved on.

A server is cut off without the rules of its groups, and a rule that names a group means nobody without that group's addresses. So
what a last good version refers to stays with it, as it was when the controller took it away, until a good version takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from secgroups.agent.held import Kind, ObjectKey
from secgroups.agent.ruleset import GroupRules, ServerBinding


def needed_by(
    rejected: Iterable[ObjectKey], servers: Mapping[str, ServerBinding], groups: Mapping[str, GroupRules]
) -> set[ObjectKey]:
    """Return the groups and sets that the versions in force of ``rejected`` refer to, and those that these groups refer to.

    ``groups`` are those that will be in force. Not one object can be told that was not in force together with what needs it, so
    this is bounded by what was.
    """
    group_ids: set[str] = set()
    for kind, name in rejected:
        if kind is Kind.GROUP:
            group_ids.add(name)
        elif kind is Kind.SERVER and name in servers:
            group_ids.update(servers[name].group_ids)
    set_ids = {
        rule.remote
        for group_id in group_ids
        if group_id in groups
        for rule in groups[group_id].rules
        if isinstance(rule.remote, str)
    }
    return {(Kind.GROUP, group_id) for group_id in group_ids} | {(Kind.SET, group_id) for group_id in set_ids}
