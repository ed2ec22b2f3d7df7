"""``sgctl limits``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from secgroups.cli import pb
from secgroups.cli.options import list_options
from secgroups.cli.output import View, print_list

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings

LIMIT_MAX = 1_000_000
NAMES = ("groups_per_project", "rules_per_group", "groups_per_server", "servers_per_project", "addresses_per_server")


@click.group("limits", no_args_is_help=True)
def command() -> None:
    """How many groups, rules, servers and addresses a project may have."""


@command.command()
@list_options
@click.pass_obj
def show(settings: Settings, view: View) -> None:
    """Show the limits of the project, and how far they are used."""
    from secgroups.cli import kinds

    with settings.connect() as client:
        answer = client.call(client.limits.GetLimits, pb.GetLimitsRequest(project=client.project))
    print_list(list(answer.limits.limits), kinds.limits(), view)


def _limit_options(command: Any) -> Any:
    for name in reversed(NAMES):
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, name, type=click.IntRange(1, LIMIT_MAX), help=f"The most {name.replace('_', ' ')}.")(command)
    return command


@command.command("set")
@_limit_options
@click.option("--dry-run", is_flag=True, help="Show what would be and change nothing.")
@list_options
@click.pass_obj
def set_(settings: Settings, /, dry_run: bool, view: View, **most: int | None) -> None:
    """Set limits of the project in place of the controller's. For admins.

    What there is stays, also if it is more than is allowed then; only more is refused.

    Example: sgctl --project web limits set --rules-per-group 400 --servers-per-project 50000
    """
    wanted = {name: value for name, value in most.items() if value is not None}
    if not wanted:
        raise click.UsageError("give at least one limit, such as --rules-per-group 400")
    _update(settings, wanted, view, dry_run=dry_run)


@command.command()
@click.argument("names", nargs=-1, metavar="[LIMIT]...", type=click.Choice(NAMES))
@click.option("--dry-run", is_flag=True, help="Show what would be and change nothing.")
@list_options
@click.pass_obj
def reset(settings: Settings, names: Iterable[str], dry_run: bool, view: View) -> None:
    """Give limits of the project, or all of them, the controller's defaults back. For admins.

    Example: sgctl --project web limits reset rules_per_group
    """
    _update(settings, dict.fromkeys(names or NAMES), view, dry_run=dry_run)


def _update(settings: Settings, wanted: Mapping[str, int | None], view: View, *, dry_run: bool) -> None:
    from secgroups.cli import kinds
    from secgroups.cli.client import new_request_id

    changes = [pb.LimitChange(kind=pb.LimitKind.Value(f"LIMIT_KIND_{name.upper()}"), most=most) for name, most in wanted.items()]
    with settings.connect() as client:
        request = pb.UpdateLimitsRequest(project=client.project, changes=changes, validate_only=dry_run)
        request.request_id = new_request_id()
        answer = client.call(client.limits.UpdateLimits, request)
    if dry_run:
        click.echo("dry run, nothing was changed", err=True)
    print_list(list(answer.limits.limits), kinds.limits(), view)


@command.command("list")
@list_options
@click.pass_obj
def list_(settings: Settings, view: View) -> None:
    """List the projects that have other limits than the controller's. For admins."""
    from secgroups.cli import kinds

    with settings.connect() as client:
        pages = client.pages(client.limits.ListLimitOverrides, pb.ListLimitOverridesRequest())
        print_list([each for page in pages for each in page.projects], kinds.limit_overrides(), view)
