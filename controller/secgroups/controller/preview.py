"""What a change would do, from the changes that a transaction made before it was undone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from secgroups.controller.model import Change, Rule, Server
from secgroups.controller.span import touched
from secgroups.controller.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowsCut:
    """Live flows that would be cut, in total on ``agents_counted`` agents. ``uncounted`` are the others by id, and why."""

    flows: int
    agents_counted: int
    uncounted: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Servers by id and agents that would be touched, ascending, and the rules that some server would gain or lose.

    ``flows_cut`` is None if nothing is taken away, or the agents were not asked.
    """

    server_ids: tuple[str, ...]
    agent_ids: tuple[str, ...]
    rules_gained: tuple[Rule, ...]
    rules_lost: tuple[Rule, ...]
    flows_cut: FlowsCut | None = None


def preview(state: State, changes: Sequence[Change]) -> Preview:
    """Return what ``changes`` would do to ``state``, which is that before them."""
    whom = touched(state, changes)
    gained: dict[str, Rule] = {}
    lost: dict[str, Rule] = {}
    for change in changes:
        before, after = change.before, change.after
        if isinstance(after, Server) or isinstance(before, Server):
            old = frozenset(before.group_ids) if isinstance(before, Server) else frozenset()
            new = frozenset(after.group_ids) if isinstance(after, Server) else frozenset()
            gained.update(_rules(state, changes, new - old))
            lost.update(_rules(state, changes, old - new))
        elif isinstance(after, Rule) and before is None and state.server_count(after.group_id):
            gained[after.id] = after
        elif isinstance(before, Rule) and after is None and state.server_count(before.group_id):
            lost[before.id] = before
    return Preview(
        server_ids=tuple(sorted(key.partition("/")[2] for key in whom.server_keys)),
        agent_ids=tuple(sorted(whom.agent_ids)),
        rules_gained=tuple(rule for _, rule in sorted(gained.items())),
        rules_lost=tuple(rule for _, rule in sorted(lost.items())),
    )


def _rules(state: State, changes: Sequence[Change], group_ids: Iterable[str]) -> dict[str, Rule]:
    """Return the rules of groups, also of one that the same change makes (the default group of a new project)."""
    wanted = frozenset(group_ids)
    found = {rule.id: rule for group_id in wanted for rule in state.rules_of_group(group_id)}
    made = [change.after for change in changes if isinstance(change.after, Rule) and change.before is None]
    found.update((rule.id, rule) for rule in made if rule.group_id in wanted)
    return found
