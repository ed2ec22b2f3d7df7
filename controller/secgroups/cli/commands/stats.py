"""``sgctl agent stats``: the figures of one agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.agent_options import agent_address_option
from secgroups.cli.options import list_options
from secgroups.cli.output import View, print_one, print_table

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings


@click.command()
@agent_address_option
@list_options
@click.pass_obj
def stats(settings: Settings, agent_address: str, view: View) -> None:
    """Show the figures of the agent at --agent-address, which answers whether or not it has a controller.

    What is in force and where it came from, flows by state, verdicts since it started by reason; with -o wide also what each rule
    has let through. -o json has all of it.

    Example: sgctl agent stats --agent-address 127.0.0.1:7701 -o wide
    """
    from secgroups.cli import kinds

    with settings.connect_agent(agent_address) as client:
        figures = client.call(client.verdicts.GetStats, pb.GetStatsRequest())
    print_one(figures, kinds.stats(), view)
    if view.form not in ("table", "wide") or view.columns:
        return
    _print_counts(["state", "flows"], figures.flows_by_state, view)
    verdicts = {reason.removeprefix("REASON_"): count for reason, count in figures.verdicts.items()}
    _print_counts(["reason", "verdicts"], verdicts, view)
    if view.form == "wide" and figures.rules:
        click.echo()
        rows = [[rule.rule_id, str(rule.packets), str(rule.bytes)] for rule in figures.rules]
        print_table(["rule_id", "packets", "bytes"], rows, view)


def _print_counts(header: list[str], counts: Mapping[str, int], view: View) -> None:
    """Print a table below an empty line, the largest count first; nothing if nothing was counted."""
    rows = [[name, str(count)] for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count]
    if rows:
        click.echo()
        print_table(header, rows, view)
