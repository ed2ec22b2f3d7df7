"""The changes that there are, each as a function of a transaction: every rule about what may be changed, and no SQL.

Everything is checked against the store inside the transaction, so what is refused has changed nothing. Errors are those of
``errors``; etags are optional everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from secgroups.controller.errors import (
    AlreadyExistsError,
    DefaultGroupError,
    GroupInUseError,
    InvalidError,
    LastGroupError,
    LimitError,
    NotFoundError,
    StaleEtagError,
)
from secgroups.controller.model import (
    ANY_IPV4,
    ANY_IPV6,
    DEFAULT_GROUP,
    PREVIOUS_AGENTS_MAX,
    Address,
    Direction,
    Group,
    GroupRemote,
    Rule,
    RuleSpec,
    Server,
    check_description,
    check_distinct,
    check_name,
    etag_of,
    is_default_name,
    rule_text,
)
from secgroups.controller.store.interface import Transaction

# An error carries so many of those who use a group, and its message names so many of each kind and says how many there are.
USERS_SHOWN_MAX = 50
USERS_NAMED_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """A group's rules after a replacement, in the order asked for, and what became of them."""

    rules: list[Rule]
    added_ids: list[str]
    kept_ids: list[str]
    removed: list[Rule]


def ensure_default_group(tx: Transaction, project: str) -> Group:
    """Return the project's default group; the first use of a project makes it."""
    check_name(project, "project")
    found = tx.find_group_by_name(project, DEFAULT_GROUP)
    if found is not None:
        return found
    group = _new_group(tx, project, DEFAULT_GROUP, "Allows all outbound, and inbound among its own members")
    _add_rule(tx, group, RuleSpec(direction=Direction.INGRESS, protocol=None, remote=GroupRemote(group.id)))
    return group


def create_group(tx: Transaction, *, project: str, name: str, description: str = "", others_planned: int = 0) -> Group:
    """Make a group with the two egress rules that every group is born with.

    For the limit the project has ``others_planned`` groups more than it has.
    """
    check_name(project, "project")
    check_name(name, "name")
    check_description(description)
    _check_name_is_free(tx, project, name)
    ensure_default_group(tx, project)
    count, more = tx.count_groups(project), 1 + others_planned
    _check_limit(tx, project, "groups_per_project", f"project {project}", "groups", count, more)
    return _new_group(tx, project, name, description)


def _new_group(tx: Transaction, project: str, name: str, description: str) -> Group:
    group = Group(
        id=tx.new_id(),
        project=project,
        name=name,
        description=description,
        created_us=tx.now_us,
        updated_us=tx.now_us,
        revision=tx.revision,
        rules_revision=tx.revision,
        members_revision=tx.revision,
    )
    tx.put_group(None, group)
    for everywhere in (ANY_IPV4, ANY_IPV6):
        _add_rule(tx, group, RuleSpec(direction=Direction.EGRESS, protocol=None, remote=everywhere))
    return group


def _check_name_is_free(tx: Transaction, project: str, name: str) -> None:
    if is_default_name(name):
        # In a new project there is none yet, and this request will not make it.
        default = tx.find_group_by_name(project, DEFAULT_GROUP)
        key = DEFAULT_GROUP if default is None else default.id
        raise AlreadyExistsError("group", key, f"the name {name} is reserved for the default group ({key}); choose another")
    taken = tx.find_group_by_name(project, name)
    if taken is not None:
        raise AlreadyExistsError("group", taken.id, f"project {project} has a group {name} already: {taken.id}")


def update_group(
    tx: Transaction, *, project: str, group_id: str, name: str | None = None, description: str | None = None, etag: str = ""
) -> Group:
    """Change the name, the description or both; None leaves one as it is."""
    group = get_group(tx, project, group_id)
    _check_etag("group", group.id, group.revision, etag)
    if name is not None:
        check_name(name, "name")
    if description is not None:
        check_description(description)
    renamed = name is not None and name != group.name
    if name is not None and renamed:
        if group.is_default:
            message = f"group {group.id} is the default group and can't be renamed; make a group {name} instead"
            raise DefaultGroupError(f"group/{group.id}", message)
        _check_name_is_free(tx, project, name)
    if not renamed and (description is None or description == group.description):
        return group
    after = replace(
        group,
        name=group.name if name is None else name,
        description=group.description if description is None else description,
        updated_us=tx.now_us,
        revision=tx.revision,
        # Agents show the name, so a new one is a new version for them.
        rules_revision=tx.revision if renamed else group.rules_revision,
    )
    tx.put_group(group, after)
    return after


def delete_group(tx: Transaction, *, project: str, group_id: str, etag: str = "") -> Group:
    """Delete a group and its rules; return it as it was."""
    group = get_group(tx, project, group_id)
    _check_etag("group", group.id, group.revision, etag)
    if group.is_default:
        raise DefaultGroupError(
            f"group/{group.id}", f"group {group.id} is the default group and can't be deleted; change its rules"
        )
    _check_is_unused(tx, group)
    for rule in tx.rules_of_group(group.id):
        tx.delete_rule(rule)
    tx.delete_group(group)
    return group


def _check_is_unused(tx: Transaction, group: Group) -> None:
    servers, server_count = tx.servers_of_group(group.id, USERS_SHOWN_MAX)
    rules, rule_count = tx.rules_naming(group.id, USERS_SHOWN_MAX)
    if not server_count and not rule_count:
        return
    # Either kind gets half of the room and what the other leaves.
    rules = rules[: max(USERS_SHOWN_MAX // 2, USERS_SHOWN_MAX - server_count)]
    servers = servers[: USERS_SHOWN_MAX - len(rules)]
    uses = []
    if servers:
        uses.append(f"{_counted(server_count, 'server')} attached ({_listed(servers, server_count)})")
    if rules:
        named = [f"{rule.id} of group {rule.group_id}" for rule in rules]
        uses.append(f"{_counted(rule_count, 'rule')} of other groups naming it ({_listed(named, rule_count)})")
    message = f"group {group.name} ({group.id}) is in use: {' and '.join(uses)}; detach the servers and delete the rules first"
    users = [*(("server", server_id) for server_id in servers), *(("rule", rule.id) for rule in rules)]
    raise GroupInUseError(f"group/{group.id}", message, users)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(names: Sequence[str], count: int) -> str:
    shown = names[:USERS_NAMED_MAX]
    more = count - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def create_rules(tx: Transaction, *, project: str, group_id: str, specs: Sequence[RuleSpec], bulk: bool) -> list[Rule]:
    """Add rules to a group, all or none. With ``bulk`` an error names the row as ``rules[i]``, without it the field ``rule``."""
    group = get_group(tx, project, group_id)
    if not specs:
        raise InvalidError("rules", "must not be empty; give at least one rule")
    _check_no_rule_twice(specs)
    for index, spec in enumerate(specs):
        row = index if bulk else None
        _check_remote(tx, project, spec, "rule" if row is None else f"rules[{row}]")
        duplicate = tx.find_duplicate(group.id, spec.identity)
        if duplicate is not None:
            remote_group = tx.find_group(project, spec.remote_group_id) if spec.remote_group_id else None
            text = rule_text(spec, remote_group.name if remote_group else None)
            message = f"group {group.name} has this rule already: {duplicate.id} ({text})"
            raise AlreadyExistsError("rule", duplicate.id, message, row=row)
    count = tx.count_rules(group.id)
    _check_limit(tx, project, "rules_per_group", f"group {group.name}", "rules", count, len(specs))
    return [_add_rule(tx, group, spec) for spec in specs]


def _check_no_rule_twice(specs: Sequence[RuleSpec]) -> None:
    rows: dict[str, int] = {}
    for row, spec in enumerate(specs):
        first = rows.setdefault(spec.identity, row)
        if first != row:
            # The first has no id yet; its place in the request names it.
            raise AlreadyExistsError("rule", f"rules[{first}]", f"is the same as rules[{first}] of this request", row=row)


def _add_rule(tx: Transaction, group: Group, spec: RuleSpec) -> Rule:
    rule = Rule(id=tx.new_id(), project=group.project, group_id=group.id, spec=spec, created_us=tx.now_us, revision=tx.revision)
    tx.put_rule(None, rule)
    return rule


def update_rule(tx: Transaction, *, project: str, rule_id: str, description: str, etag: str = "") -> Rule:
    """Change a rule's description."""
    rule = get_rule(tx, project, rule_id)
    _check_etag("rule", rule.id, rule.revision, etag)
    return _described(tx, rule, check_description(description))


def _described(tx: Transaction, rule: Rule, description: str) -> Rule:
    if rule.spec.description == description:
        return rule
    after = replace(rule, spec=replace(rule.spec, description=description), revision=tx.revision)
    tx.put_rule(rule, after)
    return after


def delete_rule(tx: Transaction, *, project: str, rule_id: str, etag: str = "") -> Rule:
    """Delete a rule; return it as it was."""
    rule = get_rule(tx, project, rule_id)
    _check_etag("rule", rule.id, rule.revision, etag)
    tx.delete_rule(rule)
    return rule


def replace_rules(tx: Transaction, *, project: str, group_id: str, specs: Sequence[RuleSpec], etag: str = "") -> Replaced:
    """Make ``specs`` all the rules of a group. Rules that stay keep their ids and take over a changed description."""
    group = get_group(tx, project, group_id)
    _check_etag("group", group.id, group.revision, etag)
    _check_no_rule_twice(specs)
    for row, spec in enumerate(specs):
        _check_remote(tx, project, spec, f"rules[{row}]")
    _check_limit(tx, project, "rules_per_group", f"group {group.name}", "rules", 0, len(specs))
    wanted = {spec.identity for spec in specs}
    held = {rule.spec.identity: rule for rule in tx.rules_of_group(group.id)}
    removed = [rule for identity, rule in held.items() if identity not in wanted]
    for rule in removed:
        tx.delete_rule(rule)
    rules: list[Rule] = []
    added: list[str] = []
    kept: list[str] = []
    for spec in specs:
        old = held.get(spec.identity)
        rule = _add_rule(tx, group, spec) if old is None else _described(tx, old, spec.description)
        (added if old is None else kept).append(rule.id)
        rules.append(rule)
    return Replaced(rules=rules, added_ids=added, kept_ids=kept, removed=removed)


def _check_remote(tx: Transaction, project: str, spec: RuleSpec, field: str) -> None:
    if spec.remote_group_id is not None and tx.find_group(project, spec.remote_group_id) is None:
        message = f"{field}.group_id: there is no group {spec.remote_group_id} in this project"
        raise NotFoundError("group", spec.remote_group_id, message=message)


def create_server(
    tx: Transaction,
    *,
    project: str,
    server_id: str,
    name: str = "",
    addresses: Sequence[Address],
    agent_id: str = "",
    group_ids: Sequence[str] = (),
    others_planned: int = 0,
) -> Server:
    """Make a server known; without groups it gets the default one.

    For the limit the project has ``others_planned`` servers more than it has.
    """
    check_name(server_id, "id")
    default = ensure_default_group(tx, project)
    server = Server(
        project=project,
        id=server_id,
        name=name,
        addresses=tuple(addresses),
        agent_id=agent_id,
        group_ids=_checked_groups(tx, project, server_id, group_ids) if group_ids else (default.id,),
        created_us=tx.now_us,
        updated_us=tx.now_us,
        revision=tx.revision,
        binding_revision=tx.revision,
    )
    if tx.find_server(project, server_id) is not None:
        raise AlreadyExistsError("server", server_id, f"project {project} has a server {server_id} already")
    _check_addresses(tx, server)
    count, more = tx.count_servers(project), 1 + others_planned
    _check_limit(tx, project, "servers_per_project", f"project {project}", "servers", count, more)
    tx.put_server(None, server)
    return server


def update_server(
    tx: Transaction,
    *,
    project: str,
    server_id: str,
    name: str | None = None,
    addresses: Sequence[Address] | None = None,
    agent_id: str | None = None,
    group_ids: Sequence[str] | None = None,
    etag: str = "",
) -> Server:
    """Change what is given; None leaves a thing as it is."""
    server = get_server(tx, project, server_id)
    _check_etag("server", server.id, server.revision, etag)
    after = server
    if name is not None:
        after = replace(after, name=name)
    if addresses is not None:
        after = replace(after, addresses=tuple(addresses))
    if group_ids is not None:
        after = replace(after, group_ids=_checked_groups(tx, project, server_id, group_ids))
    if agent_id is not None and agent_id != server.agent_id:
        after = replace(after, agent_id=agent_id, previous_agent_ids=_holders(server, agent_id), moved_revision=tx.revision)
    return _put_server(tx, server, after)


def _holders(server: Server, agent_id: str) -> tuple[str, ...]:
    """Return the agents that may hold a server until ``agent_id`` has it in force.

    Whether an earlier move is complete is not stored, so all that guarded it count; an agent that comes back without the server
    is not given it again.
    """
    if not agent_id:
        # Without a new agent there is none to wait for: the old ones let go at once.
        return ()
    held = dict.fromkeys((server.agent_id, *server.previous_agent_ids))
    return tuple(name for name in held if name not in ("", agent_id))[:PREVIOUS_AGENTS_MAX]


def _put_server(tx: Transaction, before: Server, after: Server) -> Server:
    if after == before:
        return before
    if after.addresses != before.addresses:
        _check_addresses(tx, after)
    rebound = (frozenset(after.addresses), after.group_ids) != (frozenset(before.addresses), before.group_ids)
    after = replace(
        after,
        updated_us=tx.now_us,
        revision=tx.revision,
        binding_revision=tx.revision if rebound else before.binding_revision,
    )
    tx.put_server(before, after)
    return after


def delete_server(tx: Transaction, *, project: str, server_id: str, etag: str = "") -> Server:
    """Forget a server; return it as it was."""
    server = get_server(tx, project, server_id)
    _check_etag("server", server.id, server.revision, etag)
    tx.delete_server(server)
    return server


def attach_group(tx: Transaction, *, project: str, server_id: str, group_id: str) -> Server:
    """Attach a group; nothing changes if it is attached."""
    server = get_server(tx, project, server_id)
    group = get_group(tx, project, group_id)
    if group.id in server.group_ids:
        return server
    _check_limit(tx, project, "groups_per_server", f"server {server.id}", "groups", len(server.group_ids), 1)
    return _put_server(tx, server, replace(server, group_ids=tuple(sorted((*server.group_ids, group.id)))))


def detach_group(tx: Transaction, *, project: str, server_id: str, group_id: str) -> Server:
    """Detach a group. NotFoundError if it is not attached, LastGroupError if no other is."""
    server = get_server(tx, project, server_id)
    group = get_group(tx, project, group_id)
    if group.id not in server.group_ids:
        raise NotFoundError(
            "attachment", f"{server.id}/{group.id}", message=f"group {group.id} is not attached to server {server.id}"
        )
    if len(server.group_ids) == 1:
        message = f"group {group.id} is the last of server {server.id}: attach another first, or delete the server"
        raise LastGroupError(f"server/{server.id}", message, [("group", group.id)])
    return _put_server(tx, server, replace(server, group_ids=tuple(old for old in server.group_ids if old != group.id)))


def set_server_groups(tx: Transaction, *, project: str, server_id: str, group_ids: Sequence[str], etag: str = "") -> Server:
    """Make ``group_ids`` all the groups of a server."""
    return update_server(tx, project=project, server_id=server_id, group_ids=group_ids, etag=etag)


def _checked_groups(tx: Transaction, project: str, server_id: str, group_ids: Sequence[str]) -> tuple[str, ...]:
    """Return the ids in ascending order, if there may be so many, none stands twice and all are groups of the project."""
    if not group_ids:
        raise InvalidError("group_ids", "must not be empty; a server has at least one group")
    check_distinct(group_ids, "group_ids")
    _check_limit(tx, project, "groups_per_server", f"server {server_id}", "groups", 0, len(group_ids))
    for index, group_id in enumerate(group_ids):
        if tx.find_group(project, group_id) is None:
            raise NotFoundError("group", group_id, message=f"group_ids[{index}]: there is no group {group_id} in this project")
    return tuple(sorted(group_ids))


def _check_addresses(tx: Transaction, server: Server) -> None:
    count = len(server.addresses)
    _check_limit(tx, server.project, "addresses_per_server", f"server {server.id}", "addresses", 0, count)
    for address in server.addresses:
        owner = tx.find_server_of_address(server.project, str(address))
        if owner is not None and owner != server.id:
            raise AlreadyExistsError("server", owner, f"address {address} is taken by server {owner}; take it from there first")


def get_group(tx: Transaction, project: str, group_id: str) -> Group:
    """Return a group of the project. NotFoundError otherwise."""
    group = tx.find_group(project, group_id)
    if group is None:
        raise NotFoundError("group", group_id)
    return group


def get_rule(tx: Transaction, project: str, rule_id: str) -> Rule:
    """Return a rule of the project. NotFoundError otherwise."""
    rule = tx.find_rule(project, rule_id)
    if rule is None:
        raise NotFoundError("rule", rule_id)
    return rule


def get_server(tx: Transaction, project: str, server_id: str) -> Server:
    """Return a server of the project. NotFoundError otherwise."""
    server = tx.find_server(project, server_id)
    if server is None:
        raise NotFoundError("server", server_id)
    return server


def _check_etag(kind: str, key: str, revision: int, given: str) -> None:
    if given and given != etag_of(revision):
        raise StaleEtagError(kind, key, given=given, present=etag_of(revision))


def _check_limit(tx: Transaction, project: str, limit: str, subject: str, what: str, present: int, more: int) -> None:
    """LimitError if ``more`` on top of what is ``present`` is beyond what the limit of this name is for the project."""
    most = getattr(tx.limits_of(project), limit)
    if present + more <= most:
        return
    has = f"has {present}" if present else f"would have {more}"
    if present and more > 1:
        what += f" and would get {more} more"
    raise LimitError(
        subject,
        f"{subject} {has} {what}, the most allowed is {most}; have fewer, or let an admin raise {limit} of project {project}",
        limit=limit,
        most=most,
    )
