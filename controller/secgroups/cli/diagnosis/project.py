"""A project: servers that nobody guards, rules that can allow nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from secgroups.cli import pb
from secgroups.cli.diagnosis.finding import Finding, some

if TYPE_CHECKING:
    from secgroups.cli.client import Client


def look_at_servers(client: Client) -> Iterator[Finding]:
    """Yield what is wrong with the servers of the client's project. CallError."""
    request = pb.ListServersRequest(project=client.project)
    servers = [server for page in client.pages(client.servers.ListServers, request) for server in page.servers]
    unguarded = [server.id for server in servers if not server.agent_id]
    if unguarded:
        yield Finding(
            what="SERVER_UNGUARDED",
            text=f"{some('server', unguarded)} without an agent: nobody enforces its rules",
            advice="say who does: sgctl server set ID --agent AGENT; or leave it so, if it only is a remote of others",
        )


def look_at_groups(client: Client) -> Iterator[Finding]:
    """Yield what is wrong with the groups of the client's project. CallError."""
    request = pb.ListGroupsRequest(project=client.project)
    groups = {group.id: group for page in client.pages(client.groups.ListGroups, request) for group in page.groups}
    all_rules = pb.ListRulesRequest(project=client.project)
    rules = [rule for page in client.pages(client.rules.ListRules, all_rules) for rule in page.rules]
    named = {
        rule.spec.group_id for rule in rules if rule.spec.WhichOneof("remote") == "group_id" and rule.spec.group_id != rule.group_id
    }
    empty = sorted(groups[group_id].name for group_id in named if group_id in groups and not groups[group_id].server_count)
    if empty:
        yield Finding(
            what="REMOTE_EMPTY",
            text=f"{some('group', empty)} named by rules as remote and has no members: these rules allow nothing",
            advice="attach servers to it: sgctl attach SERVER GROUP",
        )
    closed = sorted(
        group.name
        for group in groups.values()
        if group.server_count
        and not any(rule.group_id == group.id and rule.spec.direction == pb.DIRECTION_INGRESS for rule in rules)
    )
    if closed:
        yield Finding(
            what="GROUP_CLOSED",
            text=f"{some('group', closed)} attached to servers and lets nothing in",
            advice="add a rule: sgctl rule add GROUP --preset NAME; or leave it so, if others of their groups do",
        )
