"""The command itself: asks the controller for the rules, runs the capture, prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from secgroups.agent.errors import UnenforceableError
from secgroups.agent.settings import EngineSettings
from secgroups.cli.errors import CliError, InputError
from secgroups.cli.lookup import get_server
from secgroups.lab.engines import engine_option
from secgroups.lab.replay.capture import Capture, CaptureError
from secgroups.lab.replay.packing import PROBLEMS_MAX
from secgroups.lab.replay.report import write_csv, write_json, write_table
from secgroups.lab.replay.run import Replay
from secgroups.v1.ruleset_service_pb2 import EffectiveRuleset, GetEffectiveRulesetRequest

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings

TCP_LOOSE_MAX_S = 86_400


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--server", "wanted", required=True, metavar="SERVER", help="Whose rules judge: a name or an id.")
@click.option("--project", help="The server's project, if it is not the one sgctl works in.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.option("--summary", is_flag=True, help="Show flows and totals only.")
@click.option("--all", "everything", is_flag=True, help="Judge also packets that neither come from the server nor go to it.")
@click.option(
    "--tcp-loose",
    "tcp_loose_s",
    type=click.IntRange(0, TCP_LOOSE_MAX_S),
    default=0,
    metavar="SECONDS",
    help="Accept connections that were open before the capture began, for its first SECONDS.",
)
@engine_option
@click.pass_obj
def command(
    settings: Settings,
    *,
    file: Path,
    wanted: str,
    project: str | None,
    form: str,
    summary: bool,
    everything: bool,
    tcp_loose_s: int,
    engine: str,
) -> None:
    """Judge the packets of a capture FILE (pcap or pcapng) by the rules that a server has now.

    Shows a verdict for each packet and a line for each flow, with the rule that decided. Time is that of the capture; nothing is
    sent, and no agent is asked. Packets that are not the server's are counted and left out. The answer to a packet that is
    denied would not have been sent, but it is in the capture and is judged too.

    Exit status: 0 the capture was replayed, whatever the verdicts; 2 it was not.
    """
    try:
        with Capture(file) as capture:
            ruleset = _fetch(settings, project, wanted)
            engine_settings = EngineSettings(tcp_loose_s=tcp_loose_s)
            replay = Replay(capture, ruleset, settings=engine_settings, engine=engine, everything=everything)
            _print(replay, form, summary=summary, color=settings.color and sys.stdout.isatty())
    except CaptureError as error:
        raise InputError(f"{file}: {error}") from None
    except UnenforceableError as error:
        raise CliError(f"the rules of {wanted} can't be judged by: {error}") from None


def _print(replay: Replay, form: str, *, summary: bool, color: bool) -> None:
    if form == "json":
        lines = write_json(replay, summary=summary)
    elif form == "csv":
        lines = write_csv(replay, summary=summary)
    else:
        lines = write_table(replay, summary=summary, color=color)
    for line in lines:
        click.echo(line)
    for problem in replay.problems:
        click.echo(f"warning: {problem}", err=True)
    if len(replay.problems) == PROBLEMS_MAX:
        click.echo("warning: further frames that can't be read are only counted", err=True)
    if replay.damage:
        click.echo(f"warning: {replay.damage}", err=True)


def _fetch(settings: Settings, project: str | None, wanted: str) -> EffectiveRuleset:
    with settings.connect(project) as client:
        request = GetEffectiveRulesetRequest(project=client.project, server_id=get_server(client, wanted).id)
        return client.call(client.rulesets.GetEffectiveRuleset, request).ruleset
