"""``sgctl agent flows``: what an agent tracks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.agent_options import agent_address_option, guarded_server
from secgroups.cli.drafts import parse_cidr, parse_port, parse_protocol
from secgroups.cli.errors import FieldError
from secgroups.cli.name_completion import complete_rules, complete_servers
from secgroups.cli.options import flow_list_options
from secgroups.cli.output import CONNTRACK, View, print_list

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings

STATES = (
    "SYN_SENT",
    "SYN_SENT2",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "UNANSWERED",
    "ANSWERED",
    "REVOKED",
)


@click.command()
@agent_address_option
@click.option("--server", metavar="SERVER", shell_complete=complete_servers, help="Of this server; P/ID is not looked up.")
@click.option("--remote", metavar="CIDR", help="With an other side in this prefix.")
@click.option("--port", metavar="PORT", help="Opened to this destination port.")
@click.option("--protocol", metavar="tcp|udp|icmp|NUMBER")
@click.option("--state", type=click.Choice(STATES, case_sensitive=False), metavar="STATE", help="In this state; REVOKED is one.")
@click.option("--rule", metavar="ID", shell_complete=complete_rules, help="Allowed by this rule; the beginning of an id will do.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="N flows at most.")
@flow_list_options
@click.pass_obj
def flows(settings: Settings, /, agent_address: str, limit: int | None, view: View, **wanted: str | None) -> None:
    """Show the flows that the agent at --agent-address tracks, one line each as conntrack -L has it.

    Seconds left and state come first, then the direction that opened the flow, then the other one.

    Example: sgctl agent flows --server web-1 --protocol tcp --port 22
    """
    if view.form == CONNTRACK and (view.columns or view.sort):
        raise click.UsageError("--columns and --sort are for -o table, wide and csv")
    request = _request(settings, limit or 0, **wanted)
    with settings.connect_agent(agent_address) as client:
        answers = client.stream(client.verdicts.ListFlows, request)
        found = (flow for answer in answers for flow in answer.flows)
        if view.form == CONNTRACK:
            _print_lines(found)
        else:
            from secgroups.cli import kinds

            print_list(list(found), kinds.flows(), view)


def _print_lines(found: Iterator[pb.Flow]) -> None:
    from secgroups.cli.traffic_words import conntrack_line

    count = 0
    for flow in found:
        click.echo(conntrack_line(flow))
        count += 1
    click.echo(f"sgctl: {count} flow{'' if count == 1 else 's'} shown", err=True)


def _request(
    settings: Settings,
    limit: int,
    *,
    server: str | None,
    remote: str | None,
    port: str | None,
    protocol: str | None,
    state: str | None,
    rule: str | None,
) -> pb.ListFlowsRequest:
    from secgroups.cli.rule_messages import set_protocol

    request = pb.ListFlowsRequest(limit=limit, rule_id=(rule or "").lower())
    try:
        if remote is not None:
            request.remote_cidr = parse_cidr(remote).value
        if port is not None:
            request.port = parse_port(port)
        if protocol is not None:
            set_protocol(request, parse_protocol(protocol))
    except FieldError as error:
        raise click.UsageError(f"--{error.field}: {error.message}") from None
    if state is not None:
        request.state = pb.FlowState.Value(f"FLOW_STATE_{state.upper()}")
    if server is not None:
        request.server = guarded_server(settings, server)
    return request
