"""``sgctl token``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.options import list_options
from secgroups.cli.output import View, print_list
from secgroups.cli.seconds import Seconds

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings

LIFETIME_MAX_S = 3_650 * 24 * 3_600.0


@click.group("token", no_args_is_help=True)
def command() -> None:
    """Bearer tokens: who may do what. For admins."""


@command.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "editor", "admin"]), required=True, help="Of one project, or admin of all.")
@click.option("--in-project", default="", metavar="NAME", help="Project of a viewer or editor; else that of sgctl --project.")
@click.option(
    "--lifetime", "lifetime_s", type=Seconds(LIFETIME_MAX_S, min_open=True), metavar="SECONDS", help="Else until revoked."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the token, its owner's alone; else stdout.")
@click.pass_obj
def create(settings: Settings, name: str, role: str, in_project: str, lifetime_s: float | None, out: Path | None) -> None:
    """Make a token called NAME. Its text is shown this once.

    Example: sgctl token create ci --role editor --in-project web --lifetime 2592000 --out ci.token
    """
    from secgroups.cli.contexts import write_private

    request = pb.CreateTokenRequest(name=name, role=pb.Role.Value(f"ROLE_{role.upper()}"))
    if role != "admin":
        request.project = in_project or settings.project
    if lifetime_s is not None:
        request.lifetime.FromMilliseconds(round(lifetime_s * 1000))
    with settings.connect() as client:
        made = client.call_once(client.trust.CreateToken, request)
    if out is None:
        click.echo(made.text)
    else:
        write_private(out, made.text + "\n")
    click.echo(f"token {made.token.id} made" + (f", its text is in {out}" if out else "; its text is shown this once"), err=True)


@command.command("list")
@list_options
@click.pass_obj
def list_(settings: Settings, view: View) -> None:
    """List the tokens that are not revoked."""
    from secgroups.cli import kinds

    with settings.connect() as client:
        print_list(list(client.call(client.trust.ListTokens, pb.ListTokensRequest()).tokens), kinds.tokens(), view)


@command.command()
@click.argument("token_id", metavar="ID")
@click.pass_obj
def revoke(settings: Settings, token_id: str) -> None:
    """Revoke the token ID, at once, on open streams too."""
    with settings.connect() as client:
        client.call_once(client.trust.RevokeToken, pb.RevokeTokenRequest(id=token_id))
    click.echo(f"token {token_id} revoked")
