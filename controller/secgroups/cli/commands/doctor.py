"""``sgctl doctor``: the usual reasons for which a packet does not pass as somebody thinks it should, each with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from secgroups.cli import pb
from secgroups.cli.errors import CallError, CliError

if TYPE_CHECKING:
    from secgroups.cli.client import Client
    from secgroups.cli.settings import Settings

EXIT_FOUND = 1
# What has been late for longer than this is late for a reason.
LAG_MAX_S = 5.0
# Names of a finding; the rest is counted.
NAMED_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is hardly meant so. ``what`` is a constant for programs."""

    what: str
    text: str
    advice: str


@click.command()
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_obj
def command(settings: Settings, form: str) -> int:
    """Look for the usual mistakes in a project and among the agents. Exit status 1 if there are any.

    Agents are looked at by admins only.
    """
    findings: list[Finding] = []
    looked_at: list[str] = []
    with settings.connect() as client:
        for name, look in _LOOKS.items():
            try:
                findings += look(client)
            except CallError as error:
                if error.code != "PERMISSION_DENIED":
                    raise
                continue
            looked_at.append(name)
    if not looked_at:
        raise CliError("nothing could be looked at: the token allows none of it")
    if form == "json":
        click.echo(json.dumps({"looked_at": looked_at, "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            click.echo(f"{finding.text}\n  {finding.advice}")
        click.echo(f"{len(findings)} findings; looked at {', '.join(looked_at)} of project {settings.project}")
    return EXIT_FOUND if findings else 0


def _agents(client: Client) -> Iterator[Finding]:
    agents = [agent for page in client.pages(client.agents.ListAgents, pb.ListAgentsRequest()) for agent in page.agents]
    away = [agent.id for agent in agents if not agent.connected and agent.server_count]
    if away:
        yield Finding(
            what="AGENT_AWAY",
            text=f"{_some('agent', away)} not connected, and servers name it",
            advice="start it, look into its log, or move its servers: sgctl server set ID --agent OTHER",
        )
    for agent in agents:
        if agent.rejected:
            first = agent.rejected[0]
            yield Finding(
                what="AGENT_REJECTS",
                text=f"agent {agent.id} can't enforce {len(agent.rejected)} objects: {first.message}",
                advice="its last good rules stay in force; upgrade it, or change what it names: sgctl agent show " + agent.id,
            )
        if agent.HasField("held_back"):
            yield Finding(
                what="AGENT_HOLDS_BACK",
                text=f"agent {agent.id} holds back a state that would remove {agent.held_back.servers_removed} servers",
                advice="if they may go, restart it with a larger --max-removal; else find out what became of the database",
            )
        if agent.connected and agent.HasField("lag") and agent.lag.ToMilliseconds() > LAG_MAX_S * 1000:
            yield Finding(
                what="AGENT_LATE",
                text=f"agent {agent.id} has had changes to make for {agent.lag.ToMilliseconds() / 1000:.0f} s",
                advice="look whether it, or the way to it, is overloaded: sgctl agent show " + agent.id,
            )


def _servers(client: Client) -> Iterator[Finding]:
    request = pb.ListServersRequest(project=client.project)
    servers = [server for page in client.pages(client.servers.ListServers, request) for server in page.servers]
    unguarded = [server.id for server in servers if not server.agent_id]
    if unguarded:
        yield Finding(
            what="SERVER_UNGUARDED",
            text=f"{_some('server', unguarded)} without an agent: nobody enforces its rules",
            advice="say who does: sgctl server set ID --agent AGENT; or leave it so, if it only is a remote of others",
        )


def _groups(client: Client) -> Iterator[Finding]:
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
            text=f"{_some('group', empty)} named by rules as remote and has no members: these rules allow nothing",
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
            text=f"{_some('group', closed)} attached to servers and lets nothing in",
            advice="add a rule: sgctl rule add GROUP --preset NAME; or leave it so, if others of their groups do",
        )


def _some(kind: str, names: list[str]) -> str:
    shown = ", ".join(names[:NAMED_MAX])
    if len(names) == 1:
        return f"{kind} {shown} is"
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return f"each of {len(names)} {kind}s ({shown}{more}) is"


_LOOKS: dict[str, Callable[[Client], Iterator[Any]]] = {"agents": _agents, "servers": _servers, "groups": _groups}
