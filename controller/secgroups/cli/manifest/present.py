"""A project as it is, in the words of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secgroups.cli.drafts import RuleDraft

if TYPE_CHECKING:
    from secgroups.cli.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentGroup:
    """A group that is there, with its rules in the order in which they were made."""

    id: str
    name: str
    description: str = ""
    rules: tuple[RuleDraft, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentServer:
    """A server that is there; ``groups`` are names, ascending."""

    id: str
    name: str = ""
    addresses: tuple[str, ...] = ()
    agent: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """All groups by name, in order of their making, and all servers by id."""

    groups: Mapping[str, PresentGroup]
    servers: Mapping[str, PresentServer]


def fetch(client: Client) -> Present:
    """Return the project as the controller has it now. The first use of a project makes its default group."""
    from secgroups.cli.lookup import list_groups, list_rules, list_servers
    from secgroups.cli.rule_messages import draft_of

    groups = list_groups(client)
    names = {group.id: group.name for group in groups}
    rules: dict[str, list[RuleDraft]] = {}
    for rule in list_rules(client):
        rules.setdefault(rule.group_id, []).append(draft_of(rule.spec, names))
    return Present(
        groups={
            group.name: PresentGroup(
                id=group.id, name=group.name, description=group.description, rules=tuple(rules.get(group.id, ()))
            )
            for group in groups
        },
        servers={
            server.id: PresentServer(
                id=server.id,
                name=server.name,
                addresses=tuple(server.addresses),
                agent=server.agent_id,
                groups=tuple(sorted(names.get(group_id, group_id) for group_id in server.group_ids)),
            )
            for server in list_servers(client)
        },
    )
