"""Options that several commands have, bundled into one value each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from secgroups.cli.output import CONNTRACK, FLOW_FORMS, FORMS, View
from secgroups.cli.seconds import Seconds

Command = TypeVar("Command", bound=Callable[..., Any])

WAIT_DEFAULT_S = 10.0
# The controller's own bound.
WAIT_MAX_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOptions:
    """How to make a change: only look what it would do, wait until it is in force, and how to print it (text, json, yaml, name)."""

    dry_run: bool = False
    wait: bool = False
    wait_timeout_s: float = WAIT_DEFAULT_S
    form: str = "text"

    @property
    def spoken(self) -> bool:
        """True if the output is for people."""
        return self.form == "text"


def list_options(command: Command) -> Command:
    """Add -o, --columns and --sort; the command gets them as ``view``, without the colour setting."""
    return _view_options(command, FORMS, "table")


def flow_list_options(command: Command) -> Command:
    """Add the same for lists of flows, which are shown as conntrack does unless said."""
    return _view_options(command, FLOW_FORMS, CONNTRACK)


def _view_options(command: Command, forms: Sequence[str], usual: str) -> Command:
    @click.option("-o", "--output", "form", type=click.Choice(forms), default=usual, show_default=True)
    @click.option("--columns", default="", metavar="A,B,...", help="Which columns, in this order.")
    @click.option("--sort", default="", metavar="[-]COLUMN", help="Order of the rows; with - descending.")
    @functools.wraps(command)
    def with_view(*args: Any, form: str, columns: str, sort: str, **kwargs: Any) -> Any:
        keys = tuple(key.strip() for key in columns.split(",") if key.strip())
        color = click.get_current_context().obj.color
        return command(*args, view=View(form=form, columns=keys, sort=sort, color=color), **kwargs)

    return with_view  # type: ignore[return-value]


def change_options(command: Command) -> Command:
    """Add --wait, --wait-timeout, --dry-run and -o; the command gets them as ``how``."""

    @click.option("--wait", is_flag=True, help="Wait until it is in force on every agent that it touches.")
    @click.option(
        "--wait-timeout",
        "wait_timeout_s",
        type=Seconds(WAIT_MAX_S),
        default=WAIT_DEFAULT_S,
        show_default=True,
        metavar="SECONDS",
        help="How long --wait waits; exit status 3 after that.",
    )
    @click.option("--dry-run", is_flag=True, help="Show what would change and change nothing.")
    @click.option("-o", "--output", "form", type=click.Choice(["text", "json", "yaml", "name"]), default="text", show_default=True)
    @functools.wraps(command)
    def with_change(*args: Any, wait: bool, wait_timeout_s: float, dry_run: bool, form: str, **kwargs: Any) -> Any:
        how = ChangeOptions(dry_run=dry_run, wait=wait and not dry_run, wait_timeout_s=wait_timeout_s, form=form)
        return command(*args, how=how, **kwargs)

    return with_change  # type: ignore[return-value]
