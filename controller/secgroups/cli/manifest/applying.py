"""Makes the changes of a plan, one call each, in an order in which none refers to what is not there or still used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

from secgroups.cli import pb
from secgroups.cli.client import Client, new_request_id
from secgroups.cli.drafts import RuleDraft
from secgroups.cli.errors import CliError, PartialError
from secgroups.cli.manifest.planning import GroupStep, Plan, ServerStep
from secgroups.cli.manifest.present import Present
from secgroups.cli.rule_messages import spec_of


class Answer(Protocol):
    """The answer to a change."""

    @property
    def revision(self) -> int: ...
    @property
    def preview(self) -> pb.Preview: ...


class Call(NamedTuple):
    """A change: what it is, in words, the names of the groups that must be there, and how to make it."""

    words: str
    groups: frozenset[str]
    make: Callable[[], Answer]


class Applying:
    """Applies one plan to one project."""

    def __init__(self, client: Client, plan: Plan, present: Present) -> None:
        self._client = client
        self._plan = plan
        self._present = present
        self._ids = {group.name: group.id for group in present.groups.values()}

    def apply(self) -> list[int]:
        """Make every change; return their revisions. PartialError if one fails after others were made: it says which."""
        calls = list(self._calls(validate_only=False))
        revisions: list[int] = []
        for index, call in enumerate(calls):
            try:
                revisions.append(call.make().revision)
            except CliError as error:
                if not revisions:
                    raise
                done = [f"done: {earlier.words}" for earlier in calls[:index]]
                left = [f"not done: {later.words}" for later in calls[index:]]
                raise PartialError(f"{call.words}: {error.message}", [*error.details, *done, *left]) from None
        return revisions

    def validate(self) -> list[pb.Preview]:
        """Ask the controller about every change that refers to nothing new, and make none; return what each would do. CallError."""
        calls = self._calls(validate_only=True)
        return [call.make().preview for call in calls if call.groups <= self._ids.keys()]

    def _calls(self, *, validate_only: bool) -> Iterator[Call]:
        groups, servers = self._plan.groups, self._plan.servers
        # Servers that go free their addresses and groups; those that stay may free addresses that new ones take.
        if not validate_only:
            yield from (self._delete_server(step) for step in servers if step.action == "deleted")
        for step in groups:
            if step.action == "created":
                yield self._call(f"group {step.name} created", self._create_group, step, validate_only=validate_only)
            elif step.description is not None:
                yield self._call(f"description of group {step.name} set", self._describe, step, validate_only=validate_only)
        for step in groups:
            if step.rules is not None:
                named = {step.name, *(rule.remote.value for rule in step.rules if rule.remote.kind == "group")}
                make = partial(self._replace_rules, step.name, step.rules, validate_only)
                yield Call(f"rules of group {step.name} replaced", frozenset(named), make)
        yield from self._server_calls(validate_only=validate_only)
        if not validate_only:
            yield from self._group_deletions()

    def _call(self, words: str, make: Callable[[GroupStep, bool], Answer], step: GroupStep, *, validate_only: bool) -> Call:
        return Call(words, frozenset(), partial(make, step, validate_only))

    def _server_calls(self, *, validate_only: bool) -> Iterator[Call]:
        taken = {address for server in self._present.servers.values() for address in server.addresses}
        for action, make in (("changed", self._update_server), ("created", self._create_server)):
            for step in self._plan.servers:
                # An address that another server gives up in the same plan is not free yet when only asked about.
                if step.action != action or (validate_only and taken & set(step.addresses or ()) - self._own(step)):
                    continue
                yield Call(f"server {step.name} {action}", frozenset(step.groups or ()), partial(make, step, validate_only))

    def _own(self, step: ServerStep) -> set[str]:
        server = self._present.servers.get(step.name)
        return set(server.addresses) if server else set()

    def _group_deletions(self) -> Iterator[Call]:
        lost = [step.name for step in self._plan.groups if step.action == "deleted"]
        # Groups that go may name one another: their rules go first.
        for name in lost:
            remotes = {rule.remote.value for rule in self._present.groups[name].rules if rule.remote.kind == "group"}
            if (remotes - {name}) & set(lost):
                yield Call(f"rules of group {name} deleted", frozenset({name}), partial(self._replace_rules, name, (), False))
        for name in lost:
            yield Call(f"group {name} deleted", frozenset({name}), partial(self._delete_group, name))

    def _create_group(self, step: GroupStep, validate_only: bool) -> Answer:
        request = pb.CreateGroupRequest(name=step.name, description=step.description or "", validate_only=validate_only)
        request.project, request.request_id = self._client.project, new_request_id()
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

    def _replace_rules(self, name: str, rules: tuple[RuleDraft, ...], validate_only: bool) -> Answer:
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
            group_ids=[self._ids[name] for name in step.groups or ()],
            request_id=new_request_id(),
            validate_only=validate_only,
        )
        return self._client.call(self._client.servers.CreateServer, request)

    def _update_server(self, step: ServerStep, validate_only: bool) -> Answer:
        given = {"name": step.server_name, "addresses": step.addresses, "agent_id": step.agent, "group_ids": step.groups}
        request = pb.UpdateServerRequest(
            project=self._client.project,
            id=step.name,
            name=step.server_name or "",
            addresses=step.addresses,
            agent_id=step.agent or "",
            group_ids=[self._ids[name] for name in step.groups or ()],
            update_mask=pb.FieldMask(paths=[path for path, value in given.items() if value is not None]),
            validate_only=validate_only,
        )
        return self._client.call(self._client.servers.UpdateServer, request)

    def _delete_server(self, step: ServerStep) -> Call:
        request = pb.DeleteServerRequest(project=self._client.project, id=step.name)
        make = partial(self._client.call_once, self._client.servers.DeleteServer, request)
        return Call(f"server {step.name} deleted", frozenset(), make)
