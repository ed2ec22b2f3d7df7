"""``sgctl group``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.name_completion import complete_groups
from secgroups.cli.options import ChangeOptions, change_options, list_options
from secgroups.cli.output import View, print_list, print_one, print_table

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings


@click.group("group", no_args_is_help=True)
def command() -> None:
    """Security groups of the project."""


@command.command()
@click.argument("name")
@click.option("--description", default="", help="For people, at most 512 characters.")
@change_options
@click.pass_obj
def create(settings: Settings, name: str, description: str, how: ChangeOptions) -> None:
    """Make the group NAME. It is born with two egress rules: everything may go out.

    Example: sgctl group create web-servers --description "the web servers"
    """
    from secgroups.cli.changing import report
    from secgroups.cli.client import new_request_id

    request = pb.CreateGroupRequest(name=name, description=description, validate_only=how.dry_run)
    with settings.connect() as client:
        request.project, request.request_id = client.project, new_request_id()
        answer = client.call(client.groups.CreateGroup, request)
        group = answer.group
        report(client, how, answer, [f"group {group.name} created, id {group.id} (revision {answer.revision})"], group.name)


@command.command("list")
@list_options
@click.pass_obj
def list_(settings: Settings, view: View) -> None:
    """List the groups of the project."""
    from secgroups.cli import kinds
    from secgroups.cli.lookup import list_groups

    with settings.connect() as client:
        print_list(list_groups(client), kinds.groups(), view)


@command.command()
@click.argument("group", shell_complete=complete_groups)
@list_options
@click.pass_obj
def show(settings: Settings, group: str, view: View) -> None:
    """Show GROUP, its rules and its servers."""
    from secgroups.cli import kinds
    from secgroups.cli.lookup import get_group, group_names, list_rules, list_servers

    with settings.connect() as client:
        found = get_group(client, group)
        print_one(found, kinds.groups(), view)
        if view.form not in ("table", "wide") or view.columns:
            return
        rules = list_rules(client, group_id=found.id)
        names = group_names(client)
        members = list_servers(client, pb.ListServersRequest(project=client.project, group_id=found.id))
    columns = [column for column in kinds.rules(names).columns if column.key != "group" and not column.wide]
    click.echo()
    print_table([column.key for column in columns], [[column.text(rule) for column in columns] for rule in rules], view)
    click.echo()
    print_table(["server", "addresses"], [[server.id, ", ".join(server.addresses)] for server in members], view)


@command.command("set")
@click.argument("group", shell_complete=complete_groups)
@click.option("--name", help="New name.")
@click.option("--description", help="New description.")
@change_options
@click.pass_obj
def set_(settings: Settings, group: str, name: str | None, description: str | None, how: ChangeOptions) -> None:
    """Change name or description of GROUP."""
    from secgroups.cli.changing import report
    from secgroups.cli.lookup import get_group

    wanted = {"name": name, "description": description}
    paths = [path for path, value in wanted.items() if value is not None]
    if not paths:
        raise click.UsageError("give --name or --description")
    with settings.connect() as client:
        found = get_group(client, group)
        request = pb.UpdateGroupRequest(
            project=client.project,
            id=found.id,
            name=name or "",
            description=description or "",
            update_mask=pb.FieldMask(paths=paths),
            validate_only=how.dry_run,
        )
        answer = client.call(client.groups.UpdateGroup, request)
        now = answer.group
        same = (now.name, now.description) == (found.name, found.description)
        said = f"group {now.name} {'unchanged' if same else 'changed'} (revision {answer.revision})"
        report(client, how, answer, [said], now.name)


@command.command()
@click.argument("group", shell_complete=complete_groups)
@change_options
@click.pass_obj
def delete(settings: Settings, group: str, how: ChangeOptions) -> None:
    """Delete GROUP and its rules. Refused while a server is attached or another group's rule names it."""
    from secgroups.cli.changing import report
    from secgroups.cli.lookup import get_group

    with settings.connect() as client:
        found = get_group(client, group)
        request = pb.DeleteGroupRequest(project=client.project, id=found.id, validate_only=how.dry_run)
        answer = client.call_once(client.groups.DeleteGroup, request)
        said = f"group {found.name} deleted, id {found.id} (revision {answer.revision})"
        report(client, how, answer, [said], found.name)
