"""``sgctl apply``, ``sgctl diff`` and ``sgctl export``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.errors import InputError
from secgroups.cli.options import ChangeOptions, change_options
from secgroups.cli.output import print_data

if TYPE_CHECKING:
    from secgroups.cli.manifest.model import Manifest
    from secgroups.cli.manifest.planning import Plan, Step
    from secgroups.cli.settings import Settings

EXIT_DIFFERENT = 1
SIGNS = {"created": "+", "changed": "~", "deleted": "-"}

_file = click.option("-f", "--file", "path", required=True, type=click.Path(allow_dash=True), help="YAML file; - is stdin.")
_prune = click.option("--prune", is_flag=True, help="Also delete the groups, and the servers, that the file does not list.")


@click.command()
@_file
@_prune
@change_options
@click.pass_obj
def apply(settings: Settings, path: str, prune: bool, how: ChangeOptions) -> None:
    """Make the project what a file says: groups with their rules, servers with their groups.

    \b
    groups:
      web-servers:
        description: SSH from the office, HTTP from anywhere
        rules:
          - {direction: ingress, protocol: tcp, ports: 22, remote: 203.0.113.0/24}
          - {direction: ingress, protocol: tcp, ports: 8080-8090, remote: any}
          - {direction: ingress, protocol: icmp, remote: {group: default}}
    servers:
      web-1: {groups: [web-servers], addresses: [10.0.0.9], agent: hypervisor-1}

    A group that is listed with rules has exactly these; what the file does not say stays as it is. The whole file is checked
    before the first change, and applying it again changes nothing. The order in the file means nothing.
    """
    from secgroups.cli.changing import preview_lines, wait_in_force, warn
    from secgroups.cli.manifest.applying import Applying
    from secgroups.cli.manifest.planning import make_plan, rules_of_new_groups, silent_groups
    from secgroups.cli.manifest.present import fetch
    from secgroups.cli.manifest.reading import read_manifest

    manifest = read_manifest(path)
    with settings.connect(_project(settings, manifest)) as client:
        present = fetch(client)
        plan = make_plan(manifest, present, prune=prune)
        for group, rules in plan.rules.items():
            warn(rules, group)
        for name in silent_groups(plan.groups):
            click.echo(f"note: group {name} has no egress rule: by itself it lets a server open no connection", err=True)
        applying = Applying(client, plan, present)
        previews = applying.validate()
        revisions = [] if how.dry_run else applying.apply()
        if how.form in ("json", "yaml"):
            data = {"project": client.project, "dry_run": how.dry_run, "objects": _data(plan), "revisions": revisions}
            print_data(data, how.form)
        elif how.form == "name":
            for step in plan.steps:
                click.echo(f"{step.kind}/{step.name}")
        else:
            for line in outcome_lines(plan.steps, dry_run=how.dry_run):
                click.echo(line)
            if how.dry_run and previews:
                names = {group.id: group.name for group in present.groups.values()}
                for line in preview_lines(_union(previews), names):
                    click.echo(line)
                for line in rules_of_new_groups(plan):
                    click.echo(f"  {line}")
        if how.wait:
            wait_in_force(client, how, revisions)


@click.command()
@_file
@_prune
@click.option("-o", "--output", "form", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
@click.pass_context
def diff(ctx: click.Context, path: str, prune: bool, form: str) -> None:
    """Show what apply would change, and change nothing.

    Exit status: 0 nothing, 1 something, 2 error.
    """
    from secgroups.cli.manifest.planning import make_plan
    from secgroups.cli.manifest.present import fetch
    from secgroups.cli.manifest.reading import read_manifest

    settings: Settings = ctx.obj
    manifest = read_manifest(path)
    with settings.connect(_project(settings, manifest)) as client:
        plan = make_plan(manifest, fetch(client), prune=prune)
    if form == "text":
        for line in difference_lines(plan.steps):
            click.echo(line)
    else:
        print_data({"objects": _data(plan)}, form)
    ctx.exit(EXIT_DIFFERENT if plan.differs else 0)


@click.command()
@click.pass_obj
def export(settings: Settings) -> None:
    """Write the project as a file for apply: all groups, rules, servers and attachments."""
    from secgroups.cli.manifest.present import fetch
    from secgroups.cli.manifest.writing import write_manifest

    with settings.connect() as client:
        click.echo(write_manifest(client.project, fetch(client)), nl=False)


def outcome_lines(steps: Iterable[Step], *, dry_run: bool) -> Iterator[str]:
    """Yield a line for each object, and how many there were of each sort."""
    counts: dict[str, int] = {}
    for step in steps:
        counts[step.action] = counts.get(step.action, 0) + 1
        told = f": {_counted(step.changes)}" if step.action == "changed" else ""
        yield f"{step.kind} {step.name} {'would be ' if dry_run and step.action != 'unchanged' else ''}{step.action}{told}"
    yield ", ".join(f"{count} {action}" for action, count in counts.items()) or "the file lists nothing"


def difference_lines(steps: Iterable[Step]) -> Iterator[str]:
    """Yield what differs: a line for each object, below it one for each thing that would come, go or change."""
    different = [step for step in steps if step.action != "unchanged"]
    for step in different:
        yield f"{SIGNS[step.action]} {step.kind} {step.name}"
        yield from (f"    {line}" for line in step.changes)
    if not different:
        yield "no differences"


def _counted(changes: Iterable[str]) -> str:
    """Return ``2 added, 1 removed`` for lines that begin with +, - and ~."""
    lines = list(changes)
    counts = (
        (sum(line.startswith(sign) for line in lines), word) for sign, word in (("+", "added"), ("-", "removed"), ("~", "altered"))
    )
    return ", ".join(f"{count} {word}" for count, word in counts if count)


def _data(plan: Plan) -> list[dict[str, object]]:
    return [{"kind": step.kind, "name": step.name, "action": step.action, "changes": list(step.changes)} for step in plan.steps]


def _project(settings: Settings, manifest: Manifest) -> str:
    """Return the project that was chosen or that the file names. InputError if these are two."""
    if manifest.project is None:
        return settings.project
    if settings.project_given and settings.project != manifest.project:
        raise InputError(f"{manifest.source} is for project {manifest.project}, but {settings.project} was chosen")
    return manifest.project


def _union(previews: Sequence[pb.Preview]) -> pb.Preview:
    """Return what several changes would do together, as far as each alone tells."""
    union = pb.Preview()
    for preview in previews:
        union.MergeFrom(preview)
    servers, agents = sorted(set(union.server_ids)), sorted(set(union.agent_ids))
    return pb.Preview(
        server_ids=servers,
        server_count=len(servers),
        agent_ids=agents,
        agent_count=len(agents),
        # Several servers gain or lose the same rule.
        rules_gained={rule.id: rule for rule in union.rules_gained}.values(),
        rules_lost={rule.id: rule for rule in union.rules_lost}.values(),
        flows_cut=_total([preview.flows_cut for preview in previews if preview.HasField("flows_cut")]),
    )


def _total(cuts: Sequence[pb.FlowsCut]) -> pb.FlowsCut | None:
    """Return what several changes would cut, None if none of them takes anything away."""
    if not cuts:
        return None
    uncounted = {agent.agent_id: agent for cut in cuts for agent in cut.uncounted}
    return pb.FlowsCut(
        flows=sum(cut.flows for cut in cuts),
        # Which agents these are is not told: at least so many.
        agents_counted=max(cut.agents_counted for cut in cuts),
        uncounted=[agent for _, agent in sorted(uncounted.items())],
        uncounted_count=max(len(uncounted), *(cut.uncounted_count for cut in cuts)),
    )
