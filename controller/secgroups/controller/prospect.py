"""What objects would be if a change were made, so that agents can be asked what that would do to their flows.

The counterpart of what the publisher does with a change that was made: the same kinds of object, made of the state and of the
change on top of it. Nothing is kept up: the state may have gone on a little when an agent is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secgroups.controller.model import Address, Change, Rule, Server, alters_what_is_allowed, groups_with_other_members
from secgroups.controller.set_history import pack
from secgroups.controller.span import touched
from secgroups.controller.stream_messages import AddressSet, AddressSetPatch, GroupRules, Kind, ServerBinding, Update

if TYPE_CHECKING:
    from secgroups.controller.digest import HeldVersions
    from secgroups.controller.state import State

# What an agent is asked in one message; whole sets and groups that it does not hold yet are the largest part by far.
QUESTION_BYTES_MAX = 512 << 10


@dataclass(frozen=True, slots=True)
class _Members:
    """What would come to and go from an address set."""

    added: frozenset[Address]
    removed: frozenset[Address]


_NONE = _Members(frozenset(), frozenset())


class Prospect:
    """The objects that ``changes`` would alter, as they would be. ``state`` is that before the changes."""

    def __init__(self, state: State, changes: Sequence[Change]) -> None:
        self._state = state
        self._version = state.revision + 1
        self.server_keys = touched(state, changes).server_keys
        self._servers: dict[str, tuple[Server, Server | None]] = {}
        self._rules: dict[str, dict[str, Rule | None]] = {}
        self._members: dict[str, _Members] = {}
        # Made once for all agents.
        self._groups_made: dict[str, GroupRules] = {}
        self._sets_made: dict[str, AddressSet] = {}
        for change in changes:
            before, after = change.before, change.after
            if isinstance(before, Rule) or isinstance(after, Rule):
                self._note_rule(before if isinstance(before, Rule) else None, after if isinstance(after, Rule) else None)
            elif isinstance(before, Server) or isinstance(after, Server):
                self._note_server(before if isinstance(before, Server) else None, after if isinstance(after, Server) else None)

    def _note_rule(self, before: Rule | None, after: Rule | None) -> None:
        rule = after or before
        if rule is not None and alters_what_is_allowed(before, after):
            self._rules.setdefault(rule.group_id, {})[rule.id] = after

    def _note_server(self, before: Server | None, after: Server | None) -> None:
        if before is not None:
            self._servers[before.key] = (self._servers.get(before.key, (before,))[0], after)
        for group_id in groups_with_other_members(before, after):
            old = set(before.addresses) if before and group_id in before.group_ids else set()
            new = set(after.addresses) if after and group_id in after.group_ids else set()
            held = self._members.get(group_id, _NONE)
            come, go = new - old, old - new
            self._members[group_id] = _Members((held.added - go) | come, (held.removed - come) | go)

    def find_update(self, agent_id: str, held: HeldVersions) -> Update | None:
        """Return what the change would tell an agent that was sent ``held``; None if that is too much to ask.

        The names of groups are left out.
        """
        removed, servers = self._bindings(agent_id, held)
        entered = {group_id for server in servers for group_id in server.group_ids if (Kind.GROUP, group_id) not in held}
        altered = {group_id for group_id in self._rules if (Kind.GROUP, group_id) in held}
        groups = [self._group(group_id) for group_id in sorted(entered | altered)]
        remotes = {remote for group in groups for rule in group.rules if (remote := rule.spec.remote_group_id)}
        sets = [self._set(name) for name in sorted(remotes) if (Kind.SET, name) not in held]
        patches = [
            self._patch(name, members, version)
            for name, members in sorted(self._members.items())
            if (version := held.find((Kind.SET, name))) is not None
        ]
        pieces: list[ServerBinding | GroupRules | AddressSet | AddressSetPatch] = [*servers, *groups, *sets, *patches]
        if sum(piece.size_bytes for piece in pieces) > QUESTION_BYTES_MAX:
            return None
        return Update(
            nonce=0,
            revision=self._version,
            more=False,
            sets=tuple(sets),
            set_patches=tuple(patches),
            groups=tuple(groups),
            servers=tuple(servers),
            removed_servers=tuple(removed),
        )

    def _bindings(self, agent_id: str, held: HeldVersions) -> tuple[list[str], list[ServerBinding]]:
        """Return the servers that an agent would lose, and those that it would keep in another form."""
        removed, kept = [], []
        for key, (before, after) in self._servers.items():
            if (Kind.SERVER, key) not in held:
                continue
            # While it moves, the agent that it left has it too and keeps it through any change but a further move.
            if after is None or after.agent_id not in (before.agent_id, agent_id):
                removed.append(key)
            else:
                kept.append(
                    ServerBinding(
                        server=key,
                        version=self._version,
                        ipv4=pack(after.addresses, 4),
                        ipv6=pack(after.addresses, 6),
                        group_ids=after.group_ids,
                    )
                )
        return removed, kept

    def _group(self, group_id: str) -> GroupRules:
        made = self._groups_made.get(group_id)
        if made is None:
            rules: dict[str, Rule | None] = {rule.id: rule for rule in self._state.rules_of_group(group_id)}
            rules |= self._rules.get(group_id, {})
            kept = tuple(rule for _, rule in sorted(rules.items()) if rule is not None)
            made = GroupRules(group_id=group_id, version=self._version, name="", rules=kept)
            self._groups_made[group_id] = made
        return made

    def _set(self, name: str) -> AddressSet:
        made = self._sets_made.get(name)
        if made is None:
            change = self._members.get(name, _NONE)
            members = (set(self._state.members(name)) - change.removed) | change.added
            made = AddressSet(group_id=name, version=self._version, ipv4=pack(members, 4), ipv6=pack(members, 6))
            self._sets_made[name] = made
        return made

    def _patch(self, name: str, members: _Members, held_version: int) -> AddressSetPatch:
        return AddressSetPatch(
            group_id=name,
            base_version=held_version,
            version=self._version,
            added_ipv4=pack(members.added, 4),
            added_ipv6=pack(members.added, 6),
            removed_ipv4=pack(members.removed, 4),
            removed_ipv6=pack(members.removed, 6),
        )


def takes_away(changes: Sequence[Change]) -> bool:
    """Whether changes take anything away: a rule, a member of a group, a server, an address of it, or its agent."""
    return any(_takes_away(change.before, change.after) for change in changes)


def _takes_away(before: object, after: object) -> bool:
    if isinstance(before, Rule):
        return alters_what_is_allowed(before, after if isinstance(after, Rule) else None)
    if not isinstance(before, Server):
        return False
    if not isinstance(after, Server):
        return True
    lost = set(before.group_ids) - set(after.group_ids) or set(before.addresses) - set(after.addresses)
    return bool(lost) or before.agent_id not in ("", after.agent_id)
