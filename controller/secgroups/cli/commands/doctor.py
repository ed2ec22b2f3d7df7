"""``sgctl doctor``: the usual reasons for which a packet does not pass as somebody thinks it should, each with what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from secgroups.cli.errors import CallError, CliError, UnreachableError

if TYPE_CHECKING:
    from secgroups.cli.client import Client
    from secgroups.cli.diagnosis.finding import Finding
    from secgroups.cli.settings import Settings

EXIT_FOUND = 1


@click.command()
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Look at this data directory, of a controller of this machine, too."
)
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_obj
def command(settings: Settings, form: str, data_dir: Path | None) -> int:
    """Look for the usual mistakes: of the controller, among the agents, in a project. Exit status 1 if there are any.

    The controller and agents are looked at by admins only.
    """
    findings: list[Finding] = []
    looked_at: list[str] = []
    if data_dir is not None:
        from secgroups.cli.diagnosis.data_dir import look_at_data_dir

        findings += look_at_data_dir(data_dir)
        looked_at.append("data directory")
    reached, ways = _look_from_outside(settings)
    findings += ways
    looked_at += reached
    if not looked_at:
        raise CliError("nothing could be looked at: the token allows none of it")
    if form == "json":
        click.echo(json.dumps({"looked_at": looked_at, "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            click.echo(f"{finding.text}\n  {finding.advice}")
        click.echo(f"{len(findings)} findings; looked at {', '.join(looked_at)} of project {settings.project}")
    return EXIT_FOUND if findings else 0


def _look_from_outside(settings: Settings) -> tuple[list[str], list[Finding]]:
    """Ask the controller what the token allows; return what was looked at, and what was found."""
    from secgroups.cli.diagnosis.finding import Finding
    from secgroups.cli.diagnosis.reaching import CERTIFICATE_ENDS, look_at_address

    security = settings.security()
    ca = security.ca if security else None
    try:
        looked_at, findings = _ask(settings)
    except CallError as error:
        if error.code == "UNAUTHENTICATED":
            advice = "it is another controller's, expired or revoked: ask an admin for a new one (sgctl token create)"
            return ["address"], [Finding(what="TOKEN_REFUSED", text=f"the token does not count: {error.message}", advice=advice)]
        if not isinstance(error, UnreachableError) and error.code != "DEADLINE_EXCEEDED":
            raise
        advice = "look into its log; or is this the port that is for agents (--agent-listen)?"
        why = look_at_address(settings.controller, ca)
        return ["address"], [why or Finding(what="CONTROLLER_UNREACHABLE", text=error.message, advice=advice)]
    if ca is not None and (ending := look_at_address(settings.controller, ca)) and ending.what == CERTIFICATE_ENDS:
        findings.append(ending)
    return looked_at, findings


def _ask(settings: Settings) -> tuple[list[str], list[Finding]]:
    """Return what was looked at, and what was found. CallError if the controller answers nothing at all."""
    looked_at: list[str] = []
    findings: list[Finding] = []
    with settings.connect() as client:
        for name, look in _looks().items():
            try:
                found = list(look(client))
            except CallError as error:
                # Not for this token, or not known to an older controller.
                if error.code not in ("PERMISSION_DENIED", "UNIMPLEMENTED"):
                    raise
                continue
            findings += found
            looked_at.append(name)
    return looked_at, findings


def _looks() -> dict[str, Callable[[Client], Iterator[Finding]]]:
    """Return all looks, by what they are at."""
    from secgroups.cli.diagnosis.agents import look_at_agents
    from secgroups.cli.diagnosis.controller import look_at_controller
    from secgroups.cli.diagnosis.project import look_at_groups, look_at_servers

    return {
        "controller": lambda client: look_at_controller(client, time.time()),
        "agents": look_at_agents,
        "servers": look_at_servers,
        "groups": look_at_groups,
    }
