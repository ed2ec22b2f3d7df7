"""Makes the changes of a plan, one call each, in an order in which none refers to what is not there or still used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

from secgroups.cli import pb
from secgroups.cli.client import Client, new_request_id
from secgroups.cli.drafts import RuleDraft
from secgroups.cli.errors import CliError, PartialError
from secgroups.cli.manifest.checks import order_of_moves
from secgroups.cli.manifest.planning import DEFAULT, GroupStep, Plan, ServerStep
from secgroups.cli.manifest.present import Present
from secgroups.cli.rule_messages import spec_of


class Answer(Protocol):
    """The answer to a change."""

    @property
    def revision(self) -> int: ...
    @property
    def preview(self) -> pb.Preview: ...


class Call(NamedTuple):
    """A change: what it is, in words, and how to make it."""

    words: str
    make: Callable[[], Answer]


class Applying:
    """Applies one plan to one project."""

    def __init__(self, client: Client, plan: Plan, present: Present) -> None:
        self._client = client
        self._plan = plan
        self._present = present
        # By name; grows as groups are created.
        self._ids = {group.name: group.id for group in present.groups.values()}
        # At the end of what is created: servers that go have gone by then, groups not yet.
        self._more_groups = sum(step.action == "created" for step in plan.groups)
        self._more_servers = sum({"created": 1, "deleted": -1}.get(step.action, 0) for step in plan.servers)

    def apply(self) -> list[int]:
        """Make every change; return their revisions. PartialError if one fails after others were made: it says which."""
        calls = list(self._calls())
        revisions: list[int] = []
        for index, call in enumerate(calls):
            try:
                revisions.append(call.make().revision)
            except CliError as error:
                if not revisions:
                    raise
                done = [f"done: {earlier.words}" for earlier in calls[:index]]
                left = [f"not done: {later.words}" for later in calls[index + 1 :]]
                message = f"stopped midway: {call.words}: {error.message}"
                raise PartialError(message, [*error.details, *done, f"failed: {call.words}", *left]) from None
        return revisions

    def validate(self) -> list[pb.Preview]:
        """Ask the controller about every change and make none; return what each would do, as far as each alone tells. CallError.

        What refers to a group that is not there yet is asked about without it, and the rules of such a group as if they were the
        default group's: so that values and limits are known to be right before the first change.
        """
        previews = [self._delete_server(step, True).preview for step in self._plan.servers if step.action == "deleted"]
        for step in self._plan.groups:
            if step.action == "created":
                previews.append(self._create_group(step, True).preview)
            elif step.description is not None:
                previews.append(self._describe(step, True).preview)
            if step.rules is not None:
                present = step.name in self._ids
                rules = [rule for rule in step.rules if rule.remote.kind != "group" or rule.remote.value in self._ids]
                answer = self._replace_rules(step.name if present else DEFAULT, rules, True)
                previews.extend([answer.preview] if present else [])
        homeless = {step.name for step in self._plan.servers if step.groups and not set(step.groups) & set(self._ids)}
        taken = {address: server.id for server in self._present.servers.values() for address in server.addresses}
        for server in map(self._without_new_groups, self._servers_to_set()):
            # An address that another server gives up by the same plan is not free yet.
            if any(taken.get(address, server.name) != server.name for address in server.addresses or ()):
                continue
            if server.action == "created":
                preview = self._create_server(server, True).preview
                # Asked about without its groups, it was taken for a member of the default group.
                previews.append(_alone(server) if server.name in homeless else preview)
            elif _given(server):
                previews.append(self._update_server(server, True).preview)
        return previews

    def _calls(self) -> Iterator[Call]:
        # Servers that go free their addresses and groups.
        for server in self._plan.servers:
            if server.action == "deleted":
                yield Call(f"server {server.name} deleted", partial(self._delete_server, server, False))
        for step in self._plan.groups:
            if step.action == "created":
                yield Call(f"group {step.name} created", partial(self._create_group, step, False))
            elif step.description is not None:
                yield Call(f"description of group {step.name} set", partial(self._describe, step, False))
        for step in self._plan.groups:
            if step.rules is not None:
                yield Call(f"rules of group {step.name} replaced", partial(self._replace_rules, step.name, step.rules, False))
        for server in self._servers_to_set():
            make = self._create_server if server.action == "created" else self._update_server
            yield Call(f"server {server.name} {server.action}", partial(make, server, False))
        yield from self._group_deletions()

    def _servers_to_set(self) -> list[ServerStep]:
        """Return who changes, in the order in which addresses become free, then who is new."""
        changed = {step.name: step for step in self._plan.servers if step.action == "changed"}
        moving = order_of_moves({name: step.addresses for name, step in changed.items() if step.addresses}, self._present)
        others = [step for name, step in changed.items() if name not in set(moving)]
        created = [step for step in self._plan.servers if step.action == "created"]
        return [*(changed[name] for name in moving), *others, *created]

    def _group_deletions(self) -> Iterator[Call]:
        lost = [step.name for step in self._plan.groups if step.action == "deleted"]
        # Groups that go may name one another: their rules go first.
        for name in lost:
            remotes = {rule.remote.value for rule in self._present.groups[name].rules if rule.remote.kind == "group"}
            if (remotes - {name}) & set(lost):
                yield Call(f"rules of group {name} deleted", partial(self._replace_rules, name, (), False))
        for name in lost:
            yield Call(f"group {name} deleted", partial(self._delete_group, name))

    def _create_group(self, step: GroupStep, validate_only: bool) -> Answer:
        request = pb.CreateGroupRequest(name=step.name, description=step.description or "", validate_only=validate_only)
        request.project, request.request_id = self._client.project, new_request_id()
        if validate_only:
            request.others_planned = self._more_groups - 1
        answer = self._client.call(self._client.groups.CreateGroup, request)
        if not validate_only:
            self._ids[step.name] = answer.group.id
        return answer

    def _describe(self, step: GroupStep, validate_only: bool) -> Answer:
        request = pb.UpdateGroupRequest(
            project=self._client.project,
            id=self._ids[step.name],
            description=step.description or "",
            update_mask=pb.FieldMask(paths=["description"]),
            validate_only=validate_only,
        )
        return self._client.call(self._client.groups.UpdateGroup, request)

    def _replace_rules(self, name: str, rules: Iterable[RuleDraft], validate_only: bool) -> Answer:
        request = pb.ReplaceRulesRequest(
            project=self._client.project,
            group_id=self._ids[name],
            rules=[spec_of(rule, self._ids.__getitem__) for rule in rules],
            request_id=new_request_id(),
            validate_only=validate_only,
        )
        return self._client.call(self._client.rules.ReplaceRules, request)

    def _delete_group(self, name: str) -> Answer:
        request = pb.DeleteGroupRequest(project=self._client.project, id=self._ids[name])
        return self._client.call_once(self._client.groups.DeleteGroup, request)

    def _create_server(self, step: ServerStep, validate_only: bool) -> Answer:
        request = pb.CreateServerRequest(
            project=self._client.project,
            id=step.name,
            name=step.server_name or "",
            addresses=step.addresses,
            agent_id=step.agent or "",
            group_ids=self._group_ids(step),
            request_id=new_request_id(),
            validate_only=validate_only,
        )
        if validate_only:
            request.others_planned = self._more_servers - 1
        return self._client.call(self._client.servers.CreateServer, request)

    def _update_server(self, step: ServerStep, validate_only: bool) -> Answer:
        request = pb.UpdateServerRequest(
            project=self._client.project,
            id=step.name,
            name=step.server_name or "",
            addresses=step.addresses,
            agent_id=step.agent or "",
            group_ids=self._group_ids(step),
            update_mask=pb.FieldMask(paths=_given(step)),
            validate_only=validate_only,
        )
        return self._client.call(self._client.servers.UpdateServer, request)

    def _delete_server(self, step: ServerStep, validate_only: bool) -> Answer:
        request = pb.DeleteServerRequest(project=self._client.project, id=step.name, validate_only=validate_only)
        return self._client.call_once(self._client.servers.DeleteServer, request)

    def _group_ids(self, step: ServerStep) -> list[str]:
        return [self._ids[name] for name in step.groups or ()]

    def _without_new_groups(self, step: ServerStep) -> ServerStep:
        return replace(step, groups=tuple(name for name in step.groups or () if name in self._ids) or None)


def _alone(step: ServerStep) -> pb.Preview:
    """Return what a new server touches as far as it alone tells: itself and its agent."""
    return pb.Preview(server_ids=[step.name], agent_ids=[step.agent] if step.agent else [])


def _given(step: ServerStep) -> list[str]:
    """Return the fields of a server that a step sets."""
    values = {"name": step.server_name, "addresses": step.addresses, "agent_id": step.agent, "group_ids": step.groups}
    return [field for field, value in values.items() if value is not None]
