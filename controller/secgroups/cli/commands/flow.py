"""``sgctl check`` and ``sgctl explain``: would a new flow pass, from policy alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar

import click

from secgroups.cli import pb
from secgroups.cli.drafts import parse_octet, parse_port, parse_protocol
from secgroups.cli.errors import FieldError
from secgroups.cli.name_completion import complete_servers
from secgroups.cli.output import data_of, print_data

if TYPE_CHECKING:
    from secgroups.cli.client import Client
    from secgroups.cli.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])
EXIT_DENIED = 1


def _flow_options(command: Command) -> Command:
    """Add the options that name a flow; the command gets them as ``question``, without project and ends."""

    @click.option(
        "--from", "source", required=True, metavar="SERVER|ADDRESS", shell_complete=complete_servers, help="Where it comes from."
    )
    @click.option(
        "--to", "destination", required=True, metavar="SERVER|ADDRESS", shell_complete=complete_servers, help="Where it goes to."
    )
    @click.option("--protocol", required=True, metavar="tcp|udp|icmp|NUMBER")
    @click.option("--port", metavar="PORT", help="Destination port, for tcp, udp and sctp.")
    @click.option("--icmp-type", metavar="N", help="For icmp; echo request unless said.")
    @click.option("--icmp-code", metavar="N")
    @functools.wraps(command)
    def with_question(
        *args: Any, protocol: str, port: str | None, icmp_type: str | None, icmp_code: str | None, **kwargs: Any
    ) -> Any:
        return command(*args, question=_question(protocol, port, icmp_type, icmp_code), **kwargs)

    return with_question  # type: ignore[return-value]


def _question(protocol: str, port: str | None, icmp_type: str | None, icmp_code: str | None) -> pb.ExplainFlowRequest:
    from secgroups.cli.rule_messages import set_protocol

    request = pb.ExplainFlowRequest()
    try:
        set_protocol(request, parse_protocol(protocol))
        if port is not None:
            request.port = parse_port(port)
        if icmp_type is not None:
            request.icmp_type = parse_octet(icmp_type, "icmp-type")
        if icmp_code is not None:
            request.icmp_code = parse_octet(icmp_code, "icmp-code")
    except FieldError as error:
        raise click.UsageError(f"--{error.field}: {error.message}") from None
    return request


def _ask(client: Client, question: pb.ExplainFlowRequest, source: str, destination: str) -> pb.ExplainFlowResponse:
    question.project = client.project
    question.source.CopyFrom(_endpoint(client, source))
    question.destination.CopyFrom(_endpoint(client, destination))
    return client.call(client.rulesets.ExplainFlow, question)


def _endpoint(client: Client, text: str) -> pb.Endpoint:
    from secgroups.cli.lookup import get_server

    try:
        ip_address(text)
    except ValueError:
        return pb.Endpoint(server_id=get_server(client, text).id)
    return pb.Endpoint(address=text)


@click.command()
@_flow_options
@click.pass_context
def check(ctx: click.Context, source: str, destination: str, question: pb.ExplainFlowRequest) -> None:
    """Tell in one line whether a new flow would pass: egress of the source, then ingress of the destination.

    Exit status: 0 allowed, 1 denied, 2 error. An address that belongs to a server of the project stands for that server.

    Example: sgctl check --from 203.0.113.7 --to web-1 --protocol tcp --port 22
    """
    settings: Settings = ctx.obj
    with settings.connect() as client:
        answer = _ask(client, question, source, destination)
    click.echo(summary(answer))
    ctx.exit(0 if answer.action == pb.ACTION_ALLOW else EXIT_DENIED)


@click.command()
@_flow_options
@click.option("-o", "--output", "form", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
@click.pass_obj
def explain(settings: Settings, source: str, destination: str, question: pb.ExplainFlowRequest, form: str) -> None:
    """Tell why a new flow would pass or not: each judgement with its rule, or the rules that came nearest.

    Exit status: 0 whatever the answer, 2 error.
    """
    with settings.connect() as client:
        answer = _ask(client, question, source, destination)
    if form == "text":
        for line in grounds(answer):
            click.echo(line)
    else:
        print_data(data_of(answer), form)


def summary(answer: pb.ExplainFlowResponse) -> str:
    """Return the answer in one line: the judgements that denied, or all that allowed."""
    deciding = [judgement for judgement in answer.judgements if judgement.action == answer.action]
    return f"{_word(answer.action)}: " + "; ".join(judgement.text for judgement in deciding)


def grounds(answer: pb.ExplainFlowResponse) -> Iterator[str]:
    """Yield the answer line by line, with everything that it says."""
    yield f"{_word(answer.action)} (revision {answer.revision})"
    for judgement in answer.judgements:
        direction = pb.Direction.Name(judgement.direction).removeprefix("DIRECTION_").lower()
        reason = pb.Reason.Name(judgement.reason).removeprefix("REASON_")
        yield f"{direction} of server {judgement.server_id}: {_word(judgement.action)} {reason}"
        yield f"  {judgement.text}"
        if judgement.rule_id:
            yield f"  rule {judgement.rule_id} of group {judgement.group_name}"
        for near in judgement.nearest:
            yield f"  nearest: {near.text}  (rule {near.rule_id}; {near.failed})"


def _word(action: pb.Action.ValueType) -> str:
    return pb.Action.Name(action).removeprefix("ACTION_")
