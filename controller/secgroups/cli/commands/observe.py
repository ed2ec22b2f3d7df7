"""``sgctl observe``: verdicts as an agent gives them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from secgroups.cli import pb
from secgroups.cli.agent_options import agent_address_option, guarded_server
from secgroups.cli.drafts import parse_cidr, parse_port, parse_protocol
from secgroups.cli.errors import CliError, FieldError
from secgroups.cli.name_completion import complete_rules, complete_servers
from secgroups.cli.output import data_of

if TYPE_CHECKING:
    from secgroups.cli.settings import Settings

Value = TypeVar("Value")

VERDICTS = ("ALLOW", "DENY")
REASONS = (
    "NEW",
    "ESTABLISHED",
    "RELATED",
    "ESSENTIAL",
    "UNKNOWN_SERVER",
    "NO_RULESET",
    "INVALID_PACKET",
    "ROGUE_SERVICE",
    "SPOOFED_SOURCE",
    "NOT_LOCAL",
    "UNKNOWN_FRAGMENT",
    "INVALID_STATE",
    "NO_RULE",
    "TABLE_FULL",
    "REVOKED",
)
# The agent's own bound.
SAMPLE_MAX = 1_000_000


@click.command()
@agent_address_option
@click.option(
    "--server",
    multiple=True,
    metavar="SERVER",
    shell_complete=complete_servers,
    help="At this server; P/ID is not looked up.",
)
@click.option("--from-ip", multiple=True, metavar="CIDR", help="Coming from this address or prefix.")
@click.option("--to-ip", multiple=True, metavar="CIDR", help="Going to it.")
@click.option("--ip", multiple=True, metavar="CIDR", help="One or the other.")
@click.option("--port", multiple=True, metavar="PORT", help="With this source or destination port.")
@click.option("--protocol", metavar="tcp|udp|icmp|NUMBER")
@click.option("--verdict", multiple=True, type=click.Choice(VERDICTS, case_sensitive=False), help="DENY unless said.")
@click.option(
    "--reason",
    multiple=True,
    type=click.Choice(REASONS, case_sensitive=False),
    metavar="REASON",
    help="For example NO_RULE.",
)
@click.option(
    "--rule", multiple=True, metavar="ID", shell_complete=complete_rules, help="Decided by this rule, whatever the verdict."
)
@click.option("--all", "everything", is_flag=True, help="Whatever the verdict.")
@click.option("--sample", type=click.IntRange(1, SAMPLE_MAX), metavar="N", help="Look at one verdict in N only.")
@click.option("--first", "events_max", type=click.IntRange(1), metavar="N", help="End after N verdicts.")
@click.option("-f", "--follow", is_flag=True, help="Until interrupted: so it is anyway, unless --first is given.")
@click.option("-o", "--output", "form", type=click.Choice(["compact", "json"]), default="compact", show_default=True)
@click.pass_obj
def command(
    settings: Settings, /, agent_address: str, sample: int | None, events_max: int | None, follow: bool, form: str, **wanted: Any
) -> None:
    """Show the verdicts that the agent at --agent-address gives from now on: denials, or whatever is asked for.

    Options that may be repeated want one of their values; all options must fit. An agent keeps no verdicts, so there are none of
    before. What comes faster than it is read is dropped; how much is told on stderr, with -o json as a line of its own.

    Example: sgctl observe --server web-1 --from-ip 203.0.113.0/24 --reason no_rule
    """
    if follow and events_max is not None:
        raise click.UsageError("--first ends what --follow would go on with: leave one out")
    if wanted["everything"] and wanted["verdict"]:
        raise click.UsageError("--all is whatever the verdict: leave --verdict out")
    request = _request(settings, sample or 1, **wanted)
    shown = dropped = 0
    with settings.connect_agent(agent_address) as client:
        for answer in client.stream(client.verdicts.WatchVerdicts, request):
            for event in answer.events:
                _print(event, form)
                shown += 1
                if shown == events_max:
                    return
            if answer.dropped != dropped:
                _print_dropped(answer.dropped - dropped, answer.dropped, form)
                dropped = answer.dropped
    raise CliError(f"agent {agent_address} has ended the watch")


def _print(event: pb.VerdictEvent, form: str) -> None:
    if form == "json":
        click.echo(json.dumps(data_of(event), ensure_ascii=False))
        return
    from secgroups.cli.traffic_words import verdict_line

    click.echo(verdict_line(event))


def _print_dropped(more: int, dropped: int, form: str) -> None:
    if form == "json":
        click.echo(json.dumps({"dropped": dropped}))
    else:
        click.echo(f"{more} verdicts came too fast and were dropped, {dropped} in all; --sample takes fewer", err=True)


def _request(
    settings: Settings,
    one_in: int,
    *,
    server: tuple[str, ...],
    from_ip: tuple[str, ...],
    to_ip: tuple[str, ...],
    ip: tuple[str, ...],
    port: tuple[str, ...],
    protocol: str | None,
    verdict: tuple[str, ...],
    reason: tuple[str, ...],
    rule: tuple[str, ...],
    everything: bool,
) -> pb.WatchVerdictsRequest:
    from secgroups.cli.rule_messages import set_protocol

    request = pb.WatchVerdictsRequest(one_in=one_in, rule_ids=[text.lower() for text in rule])
    for ends, option, texts in (
        (request.source_cidrs, "--from-ip", from_ip),
        (request.destination_cidrs, "--to-ip", to_ip),
        (request.either_cidrs, "--ip", ip),
    ):
        ends.extend(remote.value for remote in _parsed(option, texts, parse_cidr))
    request.ports.extend(_parsed("--port", port, parse_port))
    for word in _parsed("--protocol", [] if protocol is None else [protocol], parse_protocol):
        set_protocol(request, word)
    # What a rule decides is to allow, but for flows that are revoked.
    words = VERDICTS if everything or (rule and not verdict and not reason) else [word.upper() for word in verdict]
    request.actions.extend(pb.Action.Value(f"ACTION_{word}") for word in words)
    request.reasons.extend(pb.Reason.Value(f"REASON_{word.upper()}") for word in reason)
    request.servers.extend(guarded_server(settings, text) for text in server)
    return request


def _parsed(option: str, texts: Sequence[str], parse: Callable[[str], Value]) -> list[Value]:
    try:
        return [parse(text) for text in texts]
    except FieldError as error:
        raise click.UsageError(f"{option}: {error.message}") from None
