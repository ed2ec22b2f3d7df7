"""``sgctl audit``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from secgroups.cli import pb
from secgroups.cli.errors import CliError, NotFoundError
from secgroups.cli.options import list_options
from secgroups.cli.output import View, print_list

if TYPE_CHECKING:
    from secgroups.cli.client import Client
    from secgroups.cli.settings import Settings

LINES_DEFAULT = 100
LINES_MAX = 1_000_000


@click.command()
@click.option("--group", default="", metavar="NAME|ID", help="Changes of a group.")
@click.option("--rule", default="", metavar="ID", help="Changes of a rule, and of the members of the groups that it names.")
@click.option("--server", default="", metavar="ID", help="Changes of a server.")
@click.option("--token", default="", metavar="ID", help="Changes made with a token.")
@click.option("--since", default="", metavar="TIME", help="From a time on, such as 2026-01-31T12:00:00Z or 2026-01-31.")
@click.option("--all-projects", is_flag=True, help="For admins.")
@click.option(
    "-n", "--lines", type=click.IntRange(1, LINES_MAX), default=LINES_DEFAULT, show_default=True, help="The latest so many."
)
@click.option("-f", "--follow", is_flag=True, help="Show each change as it is made, from now on.")
@list_options
@click.pass_obj
def command(
    settings: Settings,
    group: str,
    rule: str,
    server: str,
    token: str,
    all_projects: bool,
    since: str,
    lines: int,
    follow: bool,
    view: View,
) -> None:
    """Show who changed what, the latest first.

    Example: sgctl audit --group web-servers --since 2026-01-31
    """
    from secgroups.cli import kinds

    project = "" if all_projects else settings.project
    with settings.connect() as client:
        filter_ = pb.ChangeFilter(rule_id=rule, server_id=server, token_id=token)
        if group:
            filter_.group_id = _group_id(client, group)
        if follow:
            for answer in client.stream(client.audit.WatchChanges, pb.WatchChangesRequest(project=project, filter=filter_)):
                for change in answer.changes:
                    click.echo(kinds.change_line(change))
            return
        request = pb.ListChangesRequest(project=project, filter=filter_)
        if since:
            request.since.FromDatetime(_time(since))
        print_list(list(islice(_changes(client, request), lines)), kinds.changes(), view)


def _changes(client: Client, request: Any) -> Iterator[Any]:
    for page in client.pages(client.audit.ListChanges, request):
        yield from page.changes


def _group_id(client: Client, name: str) -> str:
    """Return the id of a group. One that is gone is known by its id alone."""
    from secgroups.cli.lookup import get_group

    try:
        return get_group(client, name).id
    except NotFoundError:
        return name


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise CliError(f"--since {text} is no time, such as 2026-01-31T12:00:00Z or 2026-01-31") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
