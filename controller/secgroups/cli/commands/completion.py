"""``sgctl completion``."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash:  eval "$(sgctl completion bash)"
    zsh:   eval "$(sgctl completion zsh)"
    fish:  sgctl completion fish | source
    """
    from click.shell_completion import get_completion_class

    from secgroups.cli import shells  # noqa: F401 - registers its classes
    from secgroups.cli.main import COMPLETE_VARIABLE, cli

    completion = get_completion_class(shell)
    assert completion is not None, f"click can't complete for {shell}"  # noqa: S101
    # The template, not source(): that one starts the shell to ask for its version.
    complete = completion(cli, {}, "sgctl", COMPLETE_VARIABLE)
    click.echo(complete.source_template % complete.source_vars())
