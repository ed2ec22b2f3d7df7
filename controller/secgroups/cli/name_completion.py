"""What a shell offers for the name of a group, a server and so on: asks the controller, briefly. What fails offers nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from secgroups.cli import pb
from secgroups.cli.errors import CliError

if TYPE_CHECKING:
    from secgroups.cli.client import Client

# People wait for this with a finger on the key.
TIMEOUT_S = 1.0
# So many objects are looked at; who has more has to type more.
OFFERED_MAX = 1000

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Found = Iterable[tuple[str, str]]


def _offers(find: Callable[[Client], Found]) -> Complete:
    """Return a completion of the names that ``find`` yields, each with a word of help."""

    def complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from secgroups.cli.client import Client

        options = ctx.find_root().params
        try:
            with Client(options["controller"], options["project"], TIMEOUT_S) as client:
                found = [(name, help_) for name, help_ in find(client) if name.startswith(incomplete)]
                return [CompletionItem(name, help=" ".join(help_.split())) for name, help_ in found]
        except CliError:
            return []

    return complete


def _groups(client: Client) -> Found:
    request = pb.ListGroupsRequest(project=client.project, page_size=OFFERED_MAX)
    return ((group.name, group.description) for group in client.call_once(client.groups.ListGroups, request).groups)


def _servers(client: Client) -> Found:
    request = pb.ListServersRequest(project=client.project, page_size=OFFERED_MAX)
    listed = client.call_once(client.servers.ListServers, request).servers
    return ((server.id, server.name or ", ".join(server.addresses)) for server in listed)


def _rules(client: Client) -> Found:
    from secgroups.cli.rule_messages import draft_of

    listed = client.call_once(client.rules.ListRules, pb.ListRulesRequest(project=client.project, page_size=OFFERED_MAX)).rules
    request = pb.ListGroupsRequest(project=client.project, page_size=OFFERED_MAX)
    names = {group.id: group.name for group in client.call_once(client.groups.ListGroups, request).groups}
    return ((rule.id, f"{names.get(rule.group_id, rule.group_id)}: {draft_of(rule.spec, names).text}") for rule in listed)


def _agents(client: Client) -> Found:
    listed = client.call_once(client.agents.ListAgents, pb.ListAgentsRequest(page_size=OFFERED_MAX)).agents
    return ((agent.id, "connected" if agent.connected else "not connected") for agent in listed)


def _presets(client: Client) -> Found:
    listed = client.call_once(client.rules.ListPresets, pb.ListPresetsRequest()).presets
    return ((preset.name, preset.description) for preset in listed)


complete_groups = _offers(_groups)
complete_servers = _offers(_servers)
complete_rules = _offers(_rules)
complete_agents = _offers(_agents)
complete_presets = _offers(_presets)
