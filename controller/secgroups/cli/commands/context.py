"""``sgctl context``."""

from __future__ import annotations

from pathlib import Path

import click

from secgroups.cli.contexts import Context, config_path, read_contexts, write_contexts
from secgroups.cli.errors import CliError
from secgroups.cli.options import list_options
from secgroups.cli.output import Column, Kind, View, print_list

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group("context", no_args_is_help=True)
def command() -> None:
    """Controllers by name: address, certificate authority, token, project."""


@command.command()
@click.argument("name")
@click.option("--from", "folder", type=_FOLDER, help="Data directory of a controller of this host.")
@click.option("--address", default="", metavar="ADDR", help="HOST:PORT or unix:PATH.")
@click.option("--ca-file", type=_FILE, help="What the controller is checked by (PEM).")
@click.option("--token-file", type=_FILE, help="File with the token.")
@click.option("--project", default="", help="Project of commands that name none.")
def add(name: str, folder: Path | None, address: str, ca_file: Path | None, token_file: Path | None, project: str) -> None:
    """Keep the controller NAME, and use it from now on.

    Example: sgctl context add local --from /var/lib/secgroups-controller
    """
    if folder is not None:
        ca_file = ca_file or folder / "trust" / "ca.pem"
        token_file = token_file or folder / "trust" / "operator.token"
    contexts = read_contexts(config_path())
    held = contexts.by_name.get(name)
    address = address or (held.address if held else "127.0.0.1:7700" if folder is not None else "")
    if not address:
        raise click.UsageError("--address is missing: where the controller answers")
    contexts.by_name[name] = Context(
        address=address,
        ca=_content(ca_file, "certificate authority") if ca_file else (held.ca if held else "system"),
        token=_content(token_file, "token").strip() if token_file else (held.token if held else ""),
        project=project or (held.project if held else ""),
    )
    contexts.current = name
    write_contexts(config_path(), contexts)
    click.echo(f"context {name} is kept in {config_path()} and used from now on")


@command.command("list")
@list_options
def list_(view: View) -> None:
    """List the contexts."""
    contexts = read_contexts(config_path())
    rows = sorted(contexts.by_name.items())
    columns = [
        Column[tuple[str, Context]]("current", lambda row: "*" if row[0] == contexts.current else ""),
        Column[tuple[str, Context]]("name", lambda row: row[0]),
        Column[tuple[str, Context]]("address", lambda row: row[1].address),
        Column[tuple[str, Context]]("project", lambda row: row[1].project),
        Column[tuple[str, Context]]("token", lambda row: "yes" if row[1].token else "no"),
    ]
    print_list(rows, Kind(columns=columns, name=lambda row: row[0], data=lambda row: _shown(*row)), view)


@command.command()
@click.argument("name")
def use(name: str) -> None:
    """Use the context NAME from now on."""
    contexts = read_contexts(config_path())
    contexts.get(name)
    contexts.current = name
    write_contexts(config_path(), contexts)


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget the context NAME."""
    contexts = read_contexts(config_path())
    contexts.get(name)
    del contexts.by_name[name]
    if contexts.current == name:
        contexts.current = ""
    write_contexts(config_path(), contexts)


def _shown(name: str, context: Context) -> dict[str, object]:
    return {"name": name, "address": context.address, "project": context.project, "token": bool(context.token)}


def _content(path: Path, what: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CliError(f"{what} {path} can't be read: {reason}") from None
