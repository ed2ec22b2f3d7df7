"""A click group whose commands are imported when they run, not when sgctl starts."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from secgroups.cli.errors import CliError


class Lazy(NamedTuple):
    """Where a command is, as "module:attribute", and its line in the list of commands."""

    target: str
    summary: str


class ClosedPipeError(Exception):
    """Nobody reads what is printed any more. Not BrokenPipeError: click would make its own exit of that."""


class LazyGroup(click.Group):
    """Its help and its completion come from the summaries, so that neither imports a command."""

    def __init__(self, *args: Any, lazy: dict[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which they were given."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command. None if there is none of that name; CliError if it can't be imported."""
        if cmd_name not in self._lazy:
            return None
        module, _, attribute = self._lazy[cmd_name].target.partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise CliError(f"command {cmd_name} is not part of this installation: {error}") from error
        assert isinstance(command, click.Command), f"{module}:{attribute} is no command"  # noqa: S101
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. ClosedPipeError if its output is not wanted."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ClosedPipeError from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in self._lazy.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin like ``incomplete``, then the options that do."""
        found = [CompletionItem(name, help=lazy.summary) for name, lazy in self._lazy.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)
