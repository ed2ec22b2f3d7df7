"""Whom a change touches: the servers whose effective ruleset it alters, and the agents that have to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secgroups.controller.model import Change, Group, Rule, Server, alters_what_is_allowed, groups_with_other_members
from secgroups.controller.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """Servers as ``project/id`` and agents by id."""

    server_keys: frozenset[str]
    agent_ids: frozenset[str]


def touched(state: State, changes: Sequence[Change]) -> Touched:
    """Return whom changes touch. ``state`` may be that before or that after them."""
    servers: set[str] = set()
    agents: set[str] = set()
    for change in changes:
        before, after = change.before, change.after
        if isinstance(after or before, Server):
            _touched_by_server(state, before, after, servers, agents)
            continue
        group_id = _group_whose_rules_change(before, after)
        if group_id is not None:
            _add(state.servers_of_group(group_id), servers, agents)
    return Touched(server_keys=frozenset(servers), agent_ids=frozenset(agents - {""}))


def _group_whose_rules_change(before: object, after: object) -> str | None:
    """Return the group whose servers allow something else, or show another name, after the change."""
    if isinstance(before, Rule) or isinstance(after, Rule):
        old, new = (thing if isinstance(thing, Rule) else None for thing in (before, after))
        rule = new or old
        return rule.group_id if rule is not None and alters_what_is_allowed(old, new) else None
    if isinstance(before, Group) and isinstance(after, Group) and before.name != after.name:
        return after.id
    return None


def _touched_by_server(state: State, before: object, after: object, servers: set[str], agents: set[str]) -> None:
    old, new = (thing if isinstance(thing, Server) else None for thing in (before, after))
    if old is None or new is None or (old.addresses, old.group_ids, old.agent_id) != (new.addresses, new.group_ids, new.agent_id):
        _add([server for server in (old, new) if server is not None], servers, agents)
    for group_id in groups_with_other_members(old, new):
        for naming in {rule.group_id for rule in state.rules_naming(group_id)}:
            _add(state.servers_of_group(naming), servers, agents)


def _add(more: Sequence[Server], servers: set[str], agents: set[str]) -> None:
    servers.update(server.key for server in more)
    agents.update(server.agent_id for server in more)
