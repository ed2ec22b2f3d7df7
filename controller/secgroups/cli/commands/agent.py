"""``sgctl agent``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.commands.enrolment import enroll, revoke
from secgroups.cli.commands.flows import flows
from secgroups.cli.commands.stats import stats
from secgroups.cli.name_completion import complete_agents
from secgroups.cli.options import list_options
from secgroups.cli.output import View, print_list, print_one, print_table

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings


@click.group("agent", no_args_is_help=True)
def command() -> None:
    """The agents, of all projects."""


command.add_command(flows)
command.add_command(stats)
command.add_command(enroll)
command.add_command(revoke)


@command.command("list")
@list_options
@click.pass_obj
def list_(settings: Settings, view: View) -> None:
    """List the agents that guard a server or have connected since the controller started."""
    from secgroups.cli import kinds

    with settings.connect() as client:
        pages = client.pages(client.agents.ListAgents, pb.ListAgentsRequest())
        print_list([agent for page in pages for agent in page.agents], kinds.agents(), view)


@command.command()
@click.argument("agent_id", metavar="ID", shell_complete=complete_agents)
@list_options
@click.pass_obj
def show(settings: Settings, agent_id: str, view: View) -> None:
    """Show the agent ID, and what it could not enforce."""
    from secgroups.cli import kinds

    with settings.connect() as client:
        agent = client.call(client.agents.GetAgent, pb.GetAgentRequest(id=agent_id)).agent
    print_one(agent, kinds.agents(), view)
    if view.form in ("table", "wide") and not view.columns and agent.rejected:
        click.echo()
        rows = [
            [pb.ObjectKind.Name(item.object.kind).removeprefix("OBJECT_KIND_").lower(), item.object.key, item.message]
            for item in agent.rejected
        ]
        print_table(["rejected", "key", "why"], rows, view)
