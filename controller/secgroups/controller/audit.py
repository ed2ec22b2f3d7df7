"""Which changes somebody wants to see, of those that the change log holds. Plain Python, no loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from secgroups.controller.model import Change, ObjectKind, Rule, Server, groups_with_other_members

# What admins decide, and nobody else is shown.
FOR_ADMINS: frozenset[ObjectKind] = frozenset({"limits", "token", "certificate", "revocation"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which changes; fields that are empty leave nothing out. ``remotes`` are the groups that the rule has named, ever.

    ``without`` are kinds of object that are not shown.
    """

    project: str = ""
    group_id: str = ""
    rule_id: str = ""
    server_id: str = ""
    token_id: str = ""
    remotes: frozenset[str] = frozenset()
    without: frozenset[ObjectKind] = frozenset()

    def covers(self, change: Change) -> bool:
        """Whether a change is one of them; of those that a rule is concerned by, as far as ``remotes`` tells."""
        thing = change.after or change.before
        if thing is None or change.kind in self.without or (self.project and thing.project != self.project):
            return False
        if self.token_id and actor_of(change)[0] != self.token_id:
            return False
        wanted = [
            (kind, name) for kind, name in (("group", self.group_id), ("rule", self.rule_id), ("server", self.server_id)) if name
        ]
        if not wanted:
            return True
        own = change.key.rpartition("/")[2] if change.kind == "server" else change.key
        return (change.kind, own) in wanted or self._concerns_the_rule(change)

    def _concerns_the_rule(self, change: Change) -> bool:
        if not self.remotes or change.kind != "server":
            return False
        before, after = (thing if isinstance(thing, Server) else None for thing in (change.before, change.after))
        return not self.remotes.isdisjoint(groups_with_other_members(before, after))


def remotes_of(rule_id: str, changes: Iterable[Change], now: Rule | None) -> frozenset[str]:
    """Return the groups that a rule has named as remote, in all of its changes and now."""
    rules: Iterator[object] = (thing for change in changes if change.key == rule_id for thing in (change.before, change.after))
    named = {rule.spec.remote_group_id for rule in (*rules, now) if isinstance(rule, Rule)}
    return frozenset(group_id for group_id in named if group_id is not None)


def actor_text(token_id: str, peer: str) -> str:
    """Return what the log keeps of who made a change."""
    return f"{token_id} {peer}" if token_id else peer


def actor_of(change: Change) -> tuple[str, str]:
    """Return the token and the peer of a change; the token is empty if there was none."""
    token_id, _, peer = change.actor.rpartition(" ")
    return token_id, peer
