"""``sgctl attach`` and ``sgctl detach``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.name_completion import complete_groups, complete_servers
from secgroups.cli.options import ChangeOptions, change_options

if TYPE_CHECKING:
    from secgroups.cli.client import Client
    from secgroups.cli.settings import Settings


@click.command()
@click.argument("server", shell_complete=complete_servers)
@click.argument("groups", nargs=-1, required=True, metavar="GROUP...", shell_complete=complete_groups)
@change_options
@click.pass_obj
def attach(settings: Settings, server: str, groups: tuple[str, ...], how: ChangeOptions) -> None:
    """Attach each GROUP to SERVER, all of them in one change. What is attached already stays so."""
    from secgroups.cli.changing import report
    from secgroups.cli.lookup import get_group, get_server

    with settings.connect() as client:
        found = get_server(client, server)
        wanted = {group.id: group.name for group in (get_group(client, group) for group in groups)}
        answer: pb.AttachGroupResponse | pb.SetServerGroupsResponse
        if len(wanted) == 1:
            request = pb.AttachGroupRequest(
                project=client.project, server_id=found.id, group_id=next(iter(wanted)), validate_only=how.dry_run
            )
            answer = client.call(client.attachments.AttachGroup, request)
        else:
            answer = _set_groups(client, found, {*found.group_ids, *wanted}, how)
        said = [
            f"group {name} {'is already attached' if group_id in found.group_ids else 'attached'} to server {found.id}"
            f" (revision {answer.revision})"
            for group_id, name in wanted.items()
        ]
        report(client, how, answer, said, found.id)


@click.command()
@click.argument("server", shell_complete=complete_servers)
@click.argument("groups", nargs=-1, required=True, metavar="GROUP...", shell_complete=complete_groups)
@change_options
@click.pass_obj
def detach(settings: Settings, server: str, groups: tuple[str, ...], how: ChangeOptions) -> None:
    """Detach each GROUP from SERVER, all of them in one change. A server keeps at least one group."""
    from secgroups.cli.changing import report
    from secgroups.cli.errors import CliError, NotFoundError
    from secgroups.cli.lookup import get_group, get_server

    with settings.connect() as client:
        found = get_server(client, server)
        gone = {group.id: group.name for group in (get_group(client, group) for group in groups)}
        answer: pb.DetachGroupResponse | pb.SetServerGroupsResponse
        if len(gone) == 1:
            request = pb.DetachGroupRequest(
                project=client.project, server_id=found.id, group_id=next(iter(gone)), validate_only=how.dry_run
            )
            answer = client.call_once(client.attachments.DetachGroup, request)
        else:
            for group_id, name in gone.items():
                if group_id not in found.group_ids:
                    raise NotFoundError(f"group {name} is not attached to server {found.id}")
            if not set(found.group_ids) - gone.keys():
                raise CliError(f"server {found.id} would be left without a group: attach another first")
            answer = _set_groups(client, found, set(found.group_ids) - gone.keys(), how)
        said = [f"group {name} detached from server {found.id} (revision {answer.revision})" for name in gone.values()]
        report(client, how, answer, said, found.id)


def _set_groups(client: Client, server: pb.Server, group_ids: Iterable[str], how: ChangeOptions) -> pb.SetServerGroupsResponse:
    """Set the groups, unless the server has changed since it was read."""
    request = pb.SetServerGroupsRequest(
        project=client.project, server_id=server.id, group_ids=sorted(group_ids), etag=server.etag, validate_only=how.dry_run
    )
    return client.call_once(client.attachments.SetServerGroups, request)
