"""``sgctl server``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.name_completion import complete_agents, complete_groups, complete_servers
from secgroups.cli.options import ChangeOptions, change_options, list_options
from secgroups.cli.output import View, print_data, print_list, print_one, print_table

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings


@click.group("server", no_args_is_help=True)
def command() -> None:
    """Servers of the project."""


@command.command()
@click.argument("server_id", metavar="ID")
@click.option("--address", "addresses", multiple=True, required=True, help="An address of the server; repeatable.")
@click.option("--name", default="", help="For people; need not be unique.")
@click.option(
    "--agent", "agent_id", shell_complete=complete_agents, default="", help="Id of the agent that guards it; may be given later."
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    shell_complete=complete_groups,
    help="A group to attach it to; repeatable. None: the default group.",
)
@change_options
@click.pass_obj
def create(
    settings: Settings,
    *,
    server_id: str,
    addresses: tuple[str, ...],
    name: str,
    agent_id: str,
    groups: tuple[str, ...],
    how: ChangeOptions,
) -> None:
    """Make the server ID known; ID is the compute system's own.

    Example: sgctl server create web-1 --address 10.0.0.9 --agent hypervisor-1 --group web-servers --wait
    """
    from secgroups.cli.changing import report
    from secgroups.cli.client import new_request_id
    from secgroups.cli.lookup import get_group

    with settings.connect() as client:
        request = pb.CreateServerRequest(
            project=client.project,
            id=server_id,
            name=name,
            addresses=addresses,
            agent_id=agent_id,
            group_ids=[get_group(client, group).id for group in groups],
            request_id=new_request_id(),
            validate_only=how.dry_run,
        )
        answer = client.call(client.servers.CreateServer, request)
        report(client, how, answer, [f"server {answer.server.id} created (revision {answer.revision})"], answer.server.id)


@command.command("list")
@click.option("--name", default="", help="Only servers of this name.")
@click.option("--address", default="", help="Only the server that has this address.")
@click.option("--agent", "agent_id", shell_complete=complete_agents, default="", help="Only servers of this agent.")
@click.option("--group", default="", shell_complete=complete_groups, help="Only servers attached to this group.")
@list_options
@click.pass_obj
def list_(settings: Settings, name: str, address: str, agent_id: str, group: str, view: View) -> None:
    """List the servers of the project."""
    from secgroups.cli import kinds
    from secgroups.cli.lookup import get_group, group_names, list_servers

    with settings.connect() as client:
        request = pb.ListServersRequest(
            project=client.project,
            name=name,
            address=address,
            agent_id=agent_id,
            group_id=get_group(client, group).id if group else "",
        )
        print_list(list_servers(client, request), kinds.servers(group_names(client)), view)


@command.command()
@click.argument("server", shell_complete=complete_servers)
@list_options
@click.pass_obj
def show(settings: Settings, server: str, view: View) -> None:
    """Show SERVER."""
    from secgroups.cli import kinds
    from secgroups.cli.lookup import get_server, group_names

    with settings.connect() as client:
        print_one(get_server(client, server), kinds.servers(group_names(client)), view)


@command.command("set")
@click.argument("server", shell_complete=complete_servers)
@click.option("--name", help="New name.")
@click.option("--address", "addresses", multiple=True, help="All addresses that it shall have; repeatable.")
@click.option("--agent", "agent_id", shell_complete=complete_agents, help="The agent that shall guard it; empty for none.")
@click.option("--group", "groups", multiple=True, shell_complete=complete_groups, help="All groups that it shall have; repeatable.")
@change_options
@click.pass_obj
def set_(
    settings: Settings,
    *,
    server: str,
    name: str | None,
    addresses: tuple[str, ...],
    agent_id: str | None,
    groups: tuple[str, ...],
    how: ChangeOptions,
) -> None:
    """Change name, addresses, agent or groups of SERVER, without restart of anything."""
    from secgroups.cli.changing import report
    from secgroups.cli.lookup import get_group, get_server

    given = {"name": name is not None, "addresses": addresses, "agent_id": agent_id is not None, "group_ids": groups}
    paths = [path for path, is_given in given.items() if is_given]
    if not paths:
        raise click.UsageError("give --name, --address, --agent or --group")
    with settings.connect() as client:
        found = get_server(client, server)
        request = pb.UpdateServerRequest(
            project=client.project,
            id=found.id,
            name=name or "",
            addresses=addresses,
            agent_id=agent_id or "",
            group_ids=[get_group(client, group).id for group in groups],
            update_mask=pb.FieldMask(paths=paths),
            validate_only=how.dry_run,
        )
        answer = client.call(client.servers.UpdateServer, request)
        outcome = "unchanged" if answer.server.etag == found.etag else "changed"
        report(client, how, answer, [f"server {found.id} {outcome} (revision {answer.revision})"], found.id)


@command.command()
@click.argument("server", shell_complete=complete_servers)
@change_options
@click.pass_obj
def delete(settings: Settings, server: str, how: ChangeOptions) -> None:
    """Forget SERVER and its attachments."""
    from secgroups.cli.changing import report
    from secgroups.cli.lookup import get_server

    with settings.connect() as client:
        found = get_server(client, server)
        request = pb.DeleteServerRequest(project=client.project, id=found.id, validate_only=how.dry_run)
        answer = client.call_once(client.servers.DeleteServer, request)
        report(client, how, answer, [f"server {found.id} deleted (revision {answer.revision})"], found.id)


@command.command()
@click.argument("server", shell_complete=complete_servers)
@list_options
@click.pass_obj
def rules(settings: Settings, server: str, view: View) -> None:
    """Show everything that SERVER allows: the rules of its groups, and the addresses of the groups that they name.

    What is not listed is denied, both ways.
    """
    from secgroups.cli import kinds
    from secgroups.cli.lookup import get_server

    with settings.connect() as client:
        found = get_server(client, server)
        request = pb.GetEffectiveRulesetRequest(project=client.project, server_id=found.id)
        ruleset = client.call(client.rulesets.GetEffectiveRuleset, request).ruleset
    if view.form in ("json", "yaml"):
        from secgroups.cli.output import data_of

        kind = kinds.effective_rules(ruleset)
        kind.chosen(view)
        ordered = kind.sorted(ruleset.rules, view)
        del ruleset.rules[:]
        ruleset.rules.extend(ordered)
        print_data(data_of(ruleset), view.form)
        return
    print_list(ruleset.rules, kinds.effective_rules(ruleset), view)
    if view.form in ("table", "wide") and not view.columns and ruleset.remote_groups:
        click.echo()
        members = [[group.name, ", ".join(group.addresses) or "nobody"] for group in ruleset.remote_groups]
        print_table(["remote_group", "addresses"], members, view)
