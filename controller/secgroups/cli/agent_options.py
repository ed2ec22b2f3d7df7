"""What the commands that ask an agent have in common: where it answers, and what it calls a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from secgroups.cli.settings import AGENT_DEFAULT

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings

# Not SECGROUPS_AGENT_...: all of these are the agent's own settings, and it refuses what it does not know.
agent_address_option = click.option(
    "--agent-address",
    "agent_address",
    envvar="SECGROUPS_AGENT",
    default=AGENT_DEFAULT,
    show_default=True,
    show_envvar=True,
    metavar="ADDR",
    help="Where the agent answers: HOST:PORT on loopback, unix:PATH, or AGENT_ID@HOST:PORT elsewhere (for admins).",
)


def guarded_server(settings: Settings, wanted: str) -> str:
    """Return ``project/id`` of the server of that name or id; ``project/id`` itself is not looked up.

    While the controller can't be reached, ``wanted`` is taken for an id: agents go on without it, and so do questions to them.
    """
    if "/" in wanted:
        return wanted
    from secgroups.cli.errors import UnreachableError
    from secgroups.cli.lookup import get_server

    try:
        with settings.connect() as client:
            server_id = get_server(client, wanted).id
    except UnreachableError as error:
        click.echo(f"{error.message}; {wanted} is taken for the id of a server", err=True)
        server_id = wanted
    return f"{settings.project}/{server_id}"
