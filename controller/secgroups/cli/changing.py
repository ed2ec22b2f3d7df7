"""What follows every change: what it did or would do, and how long until it is in force."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, cast

import click

from secgroups.cli import pb
from secgroups.cli.client import Client
from secgroups.cli.drafts import RuleDraft
from secgroups.cli.errors import LaggingError
from secgroups.cli.lookup import group_names
from secgroups.cli.options import ChangeOptions
from secgroups.cli.output import data_of, print_data
from secgroups.cli.rule_messages import draft_of

if TYPE_CHECKING:
    from google.protobuf.message import Message


class Changed(Protocol):
    """The answer to a change."""

    @property
    def revision(self) -> int: ...
    @property
    def preview(self) -> pb.Preview: ...


# The call itself may take this much longer than the waiting that it asks for.
WAIT_MARGIN_S = 5.0
NAMES_SHOWN_MAX = 10


def report(client: Client, how: ChangeOptions, answer: Changed, said: Iterable[str], name: str, *, would: str = "") -> None:
    """Print what a change did (``said`` for people) or, in a dry run, would do; then wait if asked to. LaggingError.

    The preview of a dry run tells what servers gain and lose; ``would`` is what there is to say besides.
    """
    if how.form in ("json", "yaml"):
        print_data(data_of(cast("Message", answer)), how.form)
    elif how.form == "name":
        click.echo(name)
    elif how.dry_run:
        click.echo("dry run, nothing was changed")
        if would:
            click.echo(f"would be: {would}")
        print_preview(client, answer.preview)
    else:
        for line in said:
            click.echo(line)
    if how.wait:
        wait_in_force(client, how, [answer.revision])


def warn(drafts: Iterable[RuleDraft], group: str) -> None:
    """Print a warning on stderr for each rule of a group that opens a risky port to everybody."""
    for draft in drafts:
        for risk in draft.risks():
            click.echo(f"warning: group {group}: {risk}", err=True)


def print_preview(client: Client, preview: pb.Preview) -> None:
    """Print who would be touched, and which rules would come and go."""
    rules = [*preview.rules_gained, *preview.rules_lost]
    for line in preview_lines(preview, group_names(client) if rules else {}):
        click.echo(line)


def preview_lines(preview: pb.Preview, names: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a preview; ``names`` has the names of groups by id."""
    servers = _counted(preview.server_count, "server", preview.server_ids)
    agents = _counted(preview.agent_count, "agent", preview.agent_ids)
    yield f"would change what is allowed at {servers}; would tell {agents}"
    for sign, rules in (("+", preview.rules_gained), ("-", preview.rules_lost)):
        for rule in rules:
            yield f"  {sign} {draft_of(rule.spec, names).text}  ({names.get(rule.group_id, rule.group_id)}, {rule.id})"
    if preview.HasField("flows_cut"):
        yield from _cut_lines(preview.flows_cut)


def _cut_lines(cut: pb.FlowsCut) -> Iterator[str]:
    """Yield how many live flows would be cut, and on which agents that is not known."""
    if cut.agents_counted or not cut.uncounted_count:
        flows = _counted(cut.flows, "live flow", ()) if cut.flows else "no live flow"
        yield f"would cut {flows}" + (f" on {_counted(cut.agents_counted, 'agent', ())}" if cut.agents_counted else "")
    else:
        yield "would cut an unknown number of live flows"
    for agent in cut.uncounted[:NAMES_SHOWN_MAX]:
        yield f"  not counted on {agent.agent_id}: {agent.reason}"
    if cut.uncounted_count > NAMES_SHOWN_MAX:
        yield f"  not counted on {cut.uncounted_count - NAMES_SHOWN_MAX} more agents"


def _counted(count: int, noun: str, names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:NAMES_SHOWN_MAX]) + (", ..." if count > NAMES_SHOWN_MAX else "")
    return f"{count} {noun}{'' if count == 1 else 's'}" + (f" ({shown})" if listed else "")


def wait_in_force(client: Client, how: ChangeOptions, revisions: Iterable[int]) -> None:
    """Wait until every one of ``revisions`` is in force and say how long it took. LaggingError names who is late."""
    began_s = time.monotonic()
    touched = changes = 0
    slowest_ms = None
    lagging: dict[str, pb.LaggingAgent] = {}
    for revision in sorted(set(revisions)):
        left_s = max(0.0, how.wait_timeout_s - (time.monotonic() - began_s))
        answer = _ask(client, revision, left_s)
        touched = max(touched, answer.agents_touched)
        changes += answer.agents_touched > 0
        lagging.update((agent.agent_id, agent) for agent in answer.lagging)
        if answer.HasField("commit_to_in_force"):
            took_ms = answer.commit_to_in_force.ToNanoseconds() / 1e6
            slowest_ms = max(took_ms, slowest_ms or 0.0)
    waited_ms = (time.monotonic() - began_s) * 1000
    waited = f"(waited {waited_ms:.1f} ms)"
    if lagging:
        late = [f"{agent.agent_id}: {agent.reason}" for _, agent in sorted(lagging.items())]
        raise LaggingError(f"changed, but not in force on {len(late)} of the agents after {waited_ms / 1000:.1f} s", late)
    # Which agents a revision touched is not told, only how many: of several revisions the sum may count one twice.
    places = f"{touched} agent{'' if touched == 1 else 's'}" if changes == 1 else f"every agent touched, {changes} changes"
    slowest = "" if changes == 1 else "the slowest "
    took = "" if slowest_ms is None else f", {slowest}{slowest_ms:.1f} ms after {'the' if changes == 1 else 'its'} commit"
    click.echo(f"in force on {places}{took} {waited}" if touched else f"no agent is touched {waited}", err=not how.spoken)


def _ask(client: Client, revision: int, timeout_s: float) -> pb.WaitForRevisionResponse:
    request = pb.WaitForRevisionRequest(revision=revision)
    request.timeout.FromMilliseconds(int(timeout_s * 1000))
    return client.call(client.rulesets.WaitForRevision, request, timeout_s=timeout_s + WAIT_MARGIN_S)
