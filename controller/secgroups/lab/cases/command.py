"""``sgctl test``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from secgroups.cli.errors import InputError
from secgroups.lab.cases.live import LiveWorld, find_obstacle
from secgroups.lab.cases.loader import load
from secgroups.lab.cases.local import LocalWorlds
from secgroups.lab.cases.model import Case
from secgroups.lab.cases.nodes import CaseFileError
from secgroups.lab.cases.places import take_place
from secgroups.lab.cases.report import human_line, json_line, summary
from secgroups.lab.cases.runner import Outcome, WorldFactory, run_case
from secgroups.lab.engines import engine_option

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings as CliSettings

EXIT_FAILED = 1


@click.command("test")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--live", is_flag=True, help="Change the controller that sgctl is pointed at, in projects kept for cases.")
@engine_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per case and line, and nothing else.")
@click.option("--filter", "wanted", default="", metavar="TEXT", help="Run the cases whose name contains TEXT.")
@click.pass_context
def command(ctx: click.Context, files: tuple[str, ...], live: bool, engine: str, as_json: bool, wanted: str) -> None:
    """Run scenario FILEs: each case sets up groups and servers, changes them, sends packets and says what must come.

    Every case runs against a controller and an engine of its own inside this process, with a clock of its own. With --live
    the changes and the policy answers are those of the controller, and packets are judged by an engine in this process
    that is given the controller's effective rulesets.

    Exit status: 0 all expectations hold, 1 one does not, 2 a file can't be read; its mistakes are shown with line and field.
    """
    try:
        cases = [case for case in load(files) if wanted.lower() in case.name.lower()]
    except CaseFileError as error:
        first, *more = map(str, error.problems)
        raise InputError(first, more) from None
    if not cases:
        raise InputError(f"no case has {wanted!r} in its name")
    began_s = time.monotonic()
    outcomes: list[Outcome] = []
    with _worlds(ctx.obj, engine, live=live) as make_world:
        for outcome in _run(cases, make_world, live=live):
            outcomes.append(outcome)
            line = json_line(outcome) if as_json else human_line(outcome)
            if line:
                click.echo(line)
    if not as_json:
        where = f"engine {engine}, {f'live at {ctx.obj.controller}' if live else 'in process'}"
        click.echo(summary(outcomes, time.monotonic() - began_s, where))
    if not all(outcome.ok or outcome.skipped for outcome in outcomes):
        ctx.exit(EXIT_FAILED)


def _run(cases: Sequence[Case], make_world: WorldFactory, *, live: bool) -> Iterator[Outcome]:
    for case in cases:
        obstacle = find_obstacle(case) if live else ""
        if obstacle:
            yield Outcome(case=case, ok=False, skipped=obstacle)
        else:
            yield run_case(case, make_world)


@contextmanager
def _worlds(settings: CliSettings, engine: str, *, live: bool) -> Iterator[WorldFactory]:
    if live:
        with settings.connect() as client, take_place(client) as place:
            yield partial(LiveWorld, client, engine, place)
    else:
        with LocalWorlds(engine) as worlds:
            yield worlds.make
