"""The entry point: global options, the table of commands, and the one place where errors become lines and exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from secgroups.cli.errors import CliError, shown
from secgroups.cli.lazy import ClosedPipeError, Lazy, LazyGroup
from secgroups.cli.seconds import Seconds
from secgroups.cli.settings import CONTROLLER_DEFAULT, PROJECT_DEFAULT, TIMEOUT_DEFAULT_S, TIMEOUT_MAX_S, Settings, chosen_context

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
# What a shell reports for a program that was ended by SIGPIPE.
EXIT_BROKEN_PIPE = 141
COMPLETE_VARIABLE = "_SGCTL_COMPLETE"
# Before click 8.2 a command without arguments printed its help by itself.
_NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())

COMMANDS = {
    "group": Lazy("secgroups.cli.commands.group:command", "Security groups: create, list, show, set, delete."),
    "rule": Lazy("secgroups.cli.commands.rule:command", "Rules of groups: add, list, show, set, delete, replace, presets."),
    "server": Lazy("secgroups.cli.commands.server:command", "Servers: create, list, show, set, delete, rules."),
    "attach": Lazy("secgroups.cli.commands.attachment:attach", "Attach groups to a server."),
    "detach": Lazy("secgroups.cli.commands.attachment:detach", "Detach groups from a server."),
    "check": Lazy("secgroups.cli.commands.flow:check", "Would a new flow pass? Exit status 0 yes, 1 no, 2 error."),
    "explain": Lazy("secgroups.cli.commands.flow:explain", "The same with all grounds and the nearest rules."),
    "apply": Lazy("secgroups.cli.commands.manifest:apply", "Make a project what a file says."),
    "diff": Lazy("secgroups.cli.commands.manifest:diff", "Show what apply would change. Exit status 1 if anything."),
    "export": Lazy("secgroups.cli.commands.manifest:export", "Write a project as such a file."),
    "watch": Lazy("secgroups.cli.commands.watch:command", "Show what is allowed at a server, again whenever it changes."),
    "agent": Lazy("secgroups.cli.commands.agent:command", "Agents: list, show, flows, stats, enroll, revoke."),
    "token": Lazy("secgroups.cli.commands.token:command", "Tokens of people and programs: create, list, revoke."),
    "limits": Lazy("secgroups.cli.commands.limits:command", "How much a project may have: show, set, reset, list."),
    "audit": Lazy("secgroups.cli.commands.audit:command", "Who changed what, when, and what it was before."),
    "backup": Lazy("secgroups.cli.commands.backup:command", "Write a copy of the controller's database."),
    "restore": Lazy("secgroups.cli.commands.restore:command", "Put such a copy in the place of a database."),
    "doctor": Lazy("secgroups.cli.commands.doctor:command", "Look for the usual mistakes. Exit status 1 if there are any."),
    "context": Lazy("secgroups.cli.commands.context:command", "Controllers by name: add, list, use, remove."),
    "observe": Lazy("secgroups.cli.commands.observe:command", "Show verdicts as an agent gives them."),
    "replay": Lazy("secgroups.lab.replay:command", "Judge the packets of a capture file by a server's rules."),
    "test": Lazy("secgroups.lab.cases.command:command", "Run scenario files."),
    "dev": Lazy("secgroups.lab.dev:command", "Run a controller and agents here until interrupted."),
    "completion": Lazy("secgroups.cli.commands.completion:command", "Print the completion script of a shell."),
}


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("secgroups")
    except PackageNotFoundError:
        found = "(not installed)"
    click.echo(f"sgctl {found}")
    ctx.exit()


@click.command(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    no_args_is_help=True,
)
@click.option(
    "--controller",
    envvar="SECGROUPS_CONTROLLER",
    default="",
    show_envvar=True,
    metavar="ADDR",
    help=f"HOST:PORT or unix:PATH.  [default: that of the context, or {CONTROLLER_DEFAULT}]",
)
@click.option("--context", "context_name", envvar="SECGROUPS_CONTEXT", default="", show_envvar=True, metavar="NAME")
@click.option(
    "--ca-file",
    envvar="SECGROUPS_CA_FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    show_envvar=True,
    help="What the controller is checked by (PEM), in place of the context's.",
)
@click.option(
    "--token-file",
    envvar="SECGROUPS_TOKEN_FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    show_envvar=True,
    help="File with the token, in place of the context's.",
)
@click.option(
    "--plaintext", is_flag=True, envvar="SECGROUPS_PLAINTEXT", show_envvar=True, help="No TLS; loopback and Unix sockets only."
)
@click.option(
    "-p",
    "--project",
    envvar="SECGROUPS_PROJECT",
    default="",
    show_envvar=True,
    metavar="NAME",
    help=f"[default: that of the context, or {PROJECT_DEFAULT}]",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(TIMEOUT_MAX_S, min_open=True),
    envvar="SECGROUPS_TIMEOUT",
    default=TIMEOUT_DEFAULT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an answer.",
)
@click.option("--no-color", is_flag=True, help="No colours; so does the variable NO_COLOR.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
@click.pass_context
def cli(
    ctx: click.Context,
    controller: str,
    context_name: str,
    ca_file: Path | None,
    token_file: Path | None,
    plaintext: bool,
    project: str,
    timeout_s: float,
    no_color: bool,
) -> None:
    """Security groups: virtual firewalls of servers.

    Groups, rules and servers are named by name or id everywhere. Exit status: 0 done, 1 the answer is no (check, diff), 2 error,
    3 done but not in force on every agent in time (--wait).
    """
    context = chosen_context(context_name)
    ctx.obj = Settings(
        controller=controller or context.address,
        ca_file=ca_file,
        token_file=token_file,
        context=context,
        plaintext=plaintext,
        project=project or context.project or PROJECT_DEFAULT,
        project_given=bool(project),
        timeout_s=timeout_s,
        color=not (no_color or os.environ.get("NO_COLOR")),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run sgctl with ``arguments`` (default: the process's) and exit."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run sgctl and return its exit status. Errors are lines on stderr."""
    if sys.stdout is None:
        return _fail("stdout is closed; /dev/null takes what nobody wants to see")
    try:
        if COMPLETE_VARIABLE in os.environ:
            from secgroups.cli import shells  # noqa: F401 - registers what the scripts of sgctl completion call

        status = cli.main(arguments, prog_name="sgctl", complete_var=COMPLETE_VARIABLE, standalone_mode=False)
        sys.stdout.flush()
    except CliError as error:
        return _fail(error.message, error.details, error.exit_code)
    except _NO_ARGUMENTS as error:
        click.echo(error.format_message(), err=True)
        return EXIT_ERROR
    except click.UsageError as error:
        if error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
        return _fail(error.format_message())
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except UnicodeEncodeError as error:
        # Bytes that are no text come in as lone surrogates; no message can hold them.
        return _fail(f"{shown(error.object)} is not valid UTF-8")
    except (BrokenPipeError, ClosedPipeError):
        _drop_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.filename is not None:
            return _fail(f"{os.fspath(error.filename)}: {error.strerror}")
        # What is no file of a command's is a stdout on a full disk.
        _drop_stdout()
        return _fail(f"stdout can't be written: {error.strerror or error}")
    return status if isinstance(status, int) else 0


def _drop_stdout() -> None:
    # Else the interpreter complains when it flushes stdout at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, details: Sequence[str] = (), status: int = EXIT_ERROR) -> int:
    click.echo(f"error: {message}", err=True)
    for line in details:
        click.echo(f"  {line}", err=True)
    return status
