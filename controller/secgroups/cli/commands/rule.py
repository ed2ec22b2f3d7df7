"""``sgctl rule``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import click

from secgroups.cli import pb
from secgroups.cli.drafts import RuleDraft
from secgroups.cli.errors import AmbiguousError, NotFoundError
from secgroups.cli.name_completion import complete_groups, complete_rules
from secgroups.cli.options import ChangeOptions, change_options, list_options
from secgroups.cli.output import Column, Kind, View, data_of, print_list, print_one
from secgroups.cli.rule_options import RuleWords, rule_options

if TYPE_CHECKING:
    from secgroups.cli.client import Client
    from secgroups.cli.settings import Settings


@click.group("rule", no_args_is_help=True)
def command() -> None:
    """Rules of groups. They only allow; there is no order."""


@command.command()
@click.argument("group", shell_complete=complete_groups)
@rule_options
@change_options
@click.pass_obj
def add(settings: Settings, group: str, words: RuleWords, how: ChangeOptions) -> None:
    """Add a rule to GROUP; several at once if a preset or repeated options say so, all or none.

    \b
    Examples:
      sgctl rule add web-servers --preset ssh --remote-ip 203.0.113.0/24
      sgctl rule add web-servers --protocol tcp --port 80 --port 443 --remote-any
      sgctl rule add database --protocol tcp --port 3306 --remote-group web-servers
    """
    from secgroups.cli.changing import report, warn
    from secgroups.cli.client import new_request_id
    from secgroups.cli.lookup import get_group
    from secgroups.cli.rule_messages import spec_of

    with settings.connect() as client:
        drafts = words.drafts(lambda name: _preset(client, name))
        target = get_group(client, group)
        id_of = cache(lambda name: get_group(client, name).id)
        specs = [spec_of(draft, id_of) for draft in drafts]
        answer: pb.CreateRuleResponse | pb.BatchCreateRulesResponse
        if len(specs) == 1:
            one = pb.CreateRuleRequest(rule=specs[0], request_id=new_request_id(), validate_only=how.dry_run)
            one.project, one.group_id = client.project, target.id
            answer = client.call(client.rules.CreateRule, one)
            made = [answer.rule]
        else:
            several = pb.BatchCreateRulesRequest(rules=specs, request_id=new_request_id(), validate_only=how.dry_run)
            several.project, several.group_id = client.project, target.id
            answer = client.call(client.rules.BatchCreateRules, several)
            made = list(answer.rules)
        warn(drafts, target.name)
        said = [
            f"rule {rule.id} added to group {target.name}: {draft.text} (revision {answer.revision})"
            for rule, draft in zip(made, drafts, strict=True)
        ]
        report(client, how, answer, said, "\n".join(rule.id for rule in made))


@command.command("list")
@click.argument("group", default="", shell_complete=complete_groups)
@click.option(
    "--remote-group", default="", metavar="GROUP", shell_complete=complete_groups, help="Only rules that name this group."
)
@list_options
@click.pass_obj
def list_(settings: Settings, group: str, remote_group: str, view: View) -> None:
    """List the rules of GROUP, or of the whole project."""
    from secgroups.cli import kinds
    from secgroups.cli.lookup import get_group, group_names, list_rules

    with settings.connect() as client:
        rules = list_rules(
            client,
            group_id=get_group(client, group).id if group else "",
            remote_group_id=get_group(client, remote_group).id if remote_group else "",
        )
        print_list(rules, kinds.rules(group_names(client)), view)


@command.command()
@click.argument("rule_id", metavar="RULE", shell_complete=complete_rules)
@list_options
@click.pass_obj
def show(settings: Settings, rule_id: str, view: View) -> None:
    """Show RULE, named by its id or the beginning of it."""
    from secgroups.cli import kinds
    from secgroups.cli.lookup import get_rule, group_names

    with settings.connect() as client:
        print_one(get_rule(client, rule_id), kinds.rules(group_names(client)), view)


@command.command("set")
@click.argument("rule_id", metavar="RULE", shell_complete=complete_rules)
@click.option("--description", required=True, help="New description; nothing else of a rule can be changed.")
@change_options
@click.pass_obj
def set_(settings: Settings, rule_id: str, description: str, how: ChangeOptions) -> None:
    """Change the description of RULE."""
    from secgroups.cli.changing import report
    from secgroups.cli.lookup import get_rule

    with settings.connect() as client:
        found = get_rule(client, rule_id)
        request = pb.UpdateRuleRequest(
            project=client.project,
            id=found.id,
            description=description,
            update_mask=pb.FieldMask(paths=["description"]),
            validate_only=how.dry_run,
        )
        answer = client.call(client.rules.UpdateRule, request)
        outcome = "unchanged" if found.spec.description == description else "changed"
        report(client, how, answer, [f"rule {found.id} {outcome} (revision {answer.revision})"], found.id)


@command.command()
@click.argument("rule_id", metavar="[RULE]", default="", shell_complete=complete_rules)
@click.option(
    "--group",
    default="",
    shell_complete=complete_groups,
    help="The group whose rule is spelled by the options below, as for rule add.",
)
@rule_options
@change_options
@click.pass_obj
def delete(settings: Settings, rule_id: str, group: str, words: RuleWords, how: ChangeOptions) -> None:
    """Delete RULE, named by its id or the beginning of it, or by --group and the options with which it was added.

    \b
    Examples:
      sgctl rule delete 0197f3a2-7c1e-7f00-8000-0123456789ab --wait
      sgctl rule delete --group web-servers --protocol tcp --port 22 --remote-ip 203.0.113.0/24
    """
    from secgroups.cli.changing import report
    from secgroups.cli.lookup import get_rule, group_names
    from secgroups.cli.rule_messages import draft_of

    if bool(rule_id) == bool(group) or (rule_id and words.spells_a_rule):
        raise click.UsageError("name the rule by its id, or by --group and the options with which it was added")
    with settings.connect() as client:
        found = get_rule(client, rule_id) if rule_id else _spelled(client, group, words)
        request = pb.DeleteRuleRequest(project=client.project, id=found.id, validate_only=how.dry_run)
        answer = client.call_once(client.rules.DeleteRule, request)
        said = f"rule {found.id} deleted"
        if how.spoken and not how.dry_run:
            names = group_names(client)
            said += f" from group {names.get(found.group_id, found.group_id)}: {draft_of(found.spec, names).text}"
        report(client, how, answer, [f"{said} (revision {answer.revision})"], found.id)


@command.command()
@click.argument("group", shell_complete=complete_groups)
@click.option("-f", "--file", "path", required=True, type=click.Path(allow_dash=True), help="YAML list of rules; - is stdin.")
@change_options
@click.pass_obj
def replace(settings: Settings, group: str, path: str, how: ChangeOptions) -> None:
    """Give GROUP exactly the rules of a file, in one change. Rules that stay keep their ids.

    The file is a list of rules as in the files of sgctl apply, for example
    - {direction: ingress, protocol: tcp, ports: 22, remote: 203.0.113.0/24}
    """
    from secgroups.cli.changing import report, warn
    from secgroups.cli.client import new_request_id
    from secgroups.cli.lookup import get_group, group_names
    from secgroups.cli.manifest.reading import read_rules
    from secgroups.cli.rule_messages import draft_of, spec_of

    drafts = read_rules(path)
    with settings.connect() as client:
        target = get_group(client, group)
        id_of = cache(lambda name: get_group(client, name).id)
        request = pb.ReplaceRulesRequest(
            project=client.project,
            group_id=target.id,
            rules=[spec_of(draft, id_of) for draft in drafts],
            request_id=new_request_id(),
            validate_only=how.dry_run,
        )
        answer = client.call(client.rules.ReplaceRules, request)
        warn(drafts, target.name)
        names = group_names(client)
        added = {rule.id: rule for rule in answer.rules if rule.id in set(answer.added_ids)}
        counts = f"group {target.name}: {len(added)} added, {len(answer.removed)} removed, {len(answer.kept_ids)} kept"
        said = [f"+ {draft_of(rule.spec, names).text}  ({rule.id})" for rule in added.values()]
        said += [f"- {draft_of(rule.spec, names).text}  ({rule.id})" for rule in answer.removed]
        report(client, how, answer, [*said, f"{counts} (revision {answer.revision})"], target.name, would=counts)


@command.command()
@list_options
@click.pass_obj
def presets(settings: Settings, view: View) -> None:
    """List the presets, the named shorthands for common services."""
    with settings.connect() as client:
        listed = client.call(client.rules.ListPresets, pb.ListPresetsRequest()).presets
    columns = [
        Column[pb.Preset]("name", lambda preset: preset.name),
        Column[pb.Preset]("description", lambda preset: preset.description),
        Column[pb.Preset]("rules", _preset_text),
    ]
    print_list(listed, Kind(columns=columns, name=lambda preset: preset.name, data=data_of), view)


def _preset_text(preset: pb.Preset) -> str:
    from secgroups.cli.rule_messages import draft_of

    drafts = [draft_of(spec, {}) for spec in preset.rules]
    return ", ".join(f"{draft.protocol} {draft.ports_text}".strip() for draft in drafts)


def _preset(client: Client, wanted: str) -> Sequence[RuleDraft]:
    from secgroups.cli.rule_messages import draft_of

    listed = client.call(client.rules.ListPresets, pb.ListPresetsRequest()).presets
    for preset in listed:
        if preset.name == wanted.lower():
            return [draft_of(spec, {}) for spec in preset.rules]
    raise NotFoundError(f"there is no preset {wanted!r}", [f"there are: {', '.join(preset.name for preset in listed)}"])


def _spelled(client: Client, group: str, words: RuleWords) -> pb.Rule:
    """Return the rule of ``group`` that ``words`` would add."""
    from secgroups.cli.lookup import get_group, list_rules
    from secgroups.cli.rule_messages import draft_of, spec_of

    drafts = words.drafts(lambda name: _preset(client, name))
    if len(drafts) != 1:
        raise AmbiguousError(f"the options spell {len(drafts)} rules; one is deleted at a time", [draft.text for draft in drafts])
    target = get_group(client, group)
    # Through the message and back, so that groups are compared by id whatever they were called.
    wanted = draft_of(spec_of(drafts[0], lambda name: get_group(client, name).id), {})
    for rule in list_rules(client, group_id=target.id):
        if draft_of(rule.spec, {}).identity == wanted.identity:
            return rule
    raise NotFoundError(f"group {target.name} has no rule {drafts[0].text}")
