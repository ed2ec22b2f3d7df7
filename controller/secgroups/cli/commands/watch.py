"""``sgctl watch``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.name_completion import complete_servers

if TYPE_CHECKING:
    from secgroups.cli.client import Client
    from secgroups.cli.settings import Settings

# Between attempts to find a controller that went away, a minute in all; each answer starts them anew.
RECONNECT_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0)


@click.command()
@click.argument("server", shell_complete=complete_servers)
@click.option("--changes", "changes_max", type=click.IntRange(1), metavar="N", help="End after N changes; else until interrupted.")
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_obj
def command(settings: Settings, server: str, changes_max: int | None, form: str) -> None:
    """Show what SERVER allows, then what it gains and loses with each change, until it is deleted.

    States in between may be skipped. With -o json each line is the whole ruleset. A controller that goes away is waited for.

    Example: sgctl watch web-1
    """
    from secgroups.cli.lookup import get_server, group_names

    with settings.connect() as client:
        found = get_server(client, server)
        before: pb.EffectiveRuleset | None = None
        names: dict[str, str] = {}
        changes = 0
        for after in rulesets(client, found.id):
            names |= _names(after)
            if not names.keys() >= set(after.server.group_ids):
                names |= group_names(client)
            lines = list(opening_lines(after, names) if before is None else change_lines(before, after, names))
            # A new revision may leave what is seen here as it was, for example a description.
            if lines:
                _print(after, lines, form)
                changes += before is not None
            before = after
            if changes == changes_max:
                return
        click.echo(f"server {found.id} is deleted", err=form == "json")


def rulesets(client: Client, server_id: str) -> Iterator[pb.EffectiveRuleset]:
    """Yield the ruleset now and after each change, until the server is deleted. CallError if it never was there."""
    from secgroups.cli.errors import CallError, UnreachableError

    request = pb.WatchEffectiveRulesetRequest(project=client.project, server_id=server_id)
    seen = False
    pauses_s = iter(RECONNECT_PAUSES_S)
    while True:
        try:
            for answer in client.stream(client.rulesets.WatchEffectiveRuleset, request):
                seen, pauses_s = True, iter(RECONNECT_PAUSES_S)
                yield answer.ruleset
        except CallError as error:
            if error.code == "NOT_FOUND" and seen:
                return
            # CANCELLED is what a controller that stops tells its streams.
            away = isinstance(error, UnreachableError) or error.code == "CANCELLED"
            pause_s = next(pauses_s, None)
            if not (away and seen) or pause_s is None:
                raise
            click.echo(f"{error.message}; trying again", err=True)
            time.sleep(pause_s)


def _print(ruleset: pb.EffectiveRuleset, lines: Iterable[str], form: str) -> None:
    if form == "json":
        import json

        from secgroups.cli.output import data_of

        click.echo(json.dumps(data_of(ruleset), ensure_ascii=False))
        return
    click.echo(f"revision {ruleset.revision}:")
    for line in lines:
        click.echo(f"  {line}")


def opening_lines(ruleset: pb.EffectiveRuleset, names: Mapping[str, str]) -> Iterator[str]:
    """Yield what a server is and allows; ``names`` has the names of groups by id."""
    server = ruleset.server
    yield f"server {server.id} at {', '.join(server.addresses)}, guarded by {server.agent_id or 'no agent'}"
    yield from change_lines(pb.EffectiveRuleset(server=_without_groups(server)), ruleset, names)


def _without_groups(server: pb.Server) -> pb.Server:
    bare = pb.Server()
    bare.CopyFrom(server)
    bare.ClearField("group_ids")
    return bare


def change_lines(before: pb.EffectiveRuleset, after: pb.EffectiveRuleset, names: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each thing that a server lost (``-``) or gained (``+``), members of remote groups included.

    Things are told apart by their ids: a group that got another name is neither lost nor gained.
    """
    if before.server.agent_id != after.server.agent_id:
        yield f"agent {before.server.agent_id or 'none'} -> {after.server.agent_id or 'none'}"
    yield from _signed("address {}", before.server.addresses, after.server.addresses)
    yield from _signed("{}", *([f"group {names.get(id_, id_)}" for id_ in side.server.group_ids] for side in (before, after)))
    yield from _signed("{}", *([_rule_line(rule, names) for rule in side.rules] for side in (before, after)))
    members = {group.group_id: group for group in before.remote_groups}
    for group in after.remote_groups:
        old = members.get(group.group_id)
        yield from _signed(f"{{}} is in remote group {group.name}", old.addresses if old else (), group.addresses)


def _signed(form: str, before: Iterable[str], after: Iterable[str]) -> Iterator[str]:
    old, new = dict.fromkeys(before), dict.fromkeys(after)
    yield from (f"- {form.format(item)}" for item in old if item not in new)
    yield from (f"+ {form.format(item)}" for item in new if item not in old)


def _rule_line(item: pb.EffectiveRule, names: Mapping[str, str]) -> str:
    from secgroups.cli.rule_messages import draft_of

    group = names.get(item.rule.group_id, item.group_name)
    return f"{draft_of(item.rule.spec, names).text}  ({group}, {item.rule.id})"


def _names(ruleset: pb.EffectiveRuleset) -> dict[str, str]:
    """Return the names by id of the groups that a ruleset names; a group without rules has none in it."""
    names = {group.group_id: group.name for group in ruleset.remote_groups}
    names.update((rule.rule.group_id, rule.group_name) for rule in ruleset.rules)
    return names
