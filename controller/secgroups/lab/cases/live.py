"""The world of ``--live``: changes go to a running controller, in projects that are empty before the case and after it.

Policy is the controller's: every flow is put to its ExplainFlow too. Packets are judged by an engine in this process that is given
the controller's effective rulesets after each change, with the settings and the clock of the case: agents of the installation
take no part. So a restart of the agent is one of that engine; nobody stops a controller that others use, and a case that needs
it is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from secgroups.agent.firewall import Firewall
from secgroups.agent.ruleset import Ruleset, RulesetUpdate
from secgroups.cli import pb
from secgroups.cli.errors import CallError, UnreachableError
from secgroups.lab.cases.bench import Clock, engine_settings
from secgroups.lab.cases.model import DEFAULT_GROUP, Case, StartController, StopController
from secgroups.lab.cases.policy import flow_request
from secgroups.lab.cases.world import FlowAnswer, FlowQuestion, Holdings, RefusedError
from secgroups.lab.effective import snapshot_of

if TYPE_CHECKING:
    import grpc

    from secgroups.agent.flow import Explanation, Packet, Verdict
    from secgroups.cli.client import Client, Request, Response
    from secgroups.lab.cases.places import Place
    from secgroups.v1.ruleset_service_pb2 import EffectiveRuleset
    from secgroups.v1.types_pb2 import Group, Rule, RuleSpec, Server


T = TypeVar("T")


def find_obstacle(case: Case) -> str:
    """Return why ``case`` can't be run live, empty if it can."""
    for step in case.steps:
        if isinstance(step.action, StopController | StartController):
            return f"{step.verb} (line {step.line}) is not done to a live controller"
    return ""


class LiveWorld:
    """One world; see ``world.World``. CallError if the controller can't be reached."""

    def __init__(self, client: Client, engine: str, place: Place, case: Case) -> None:
        self._client = client
        self._engine = engine
        self._place = place
        self._projects: dict[str, str] = {}
        self._clock = Clock()
        self._settings = engine_settings(case.settings)
        self._firewall = Firewall(self._settings, now_ns=self._clock.now_ns, engine=engine)
        # Until the first packet nobody sees what is in force.
        self._asked = False

    @property
    def projects(self) -> list[str]:
        """The projects that the case has used."""
        return list(self._projects.values())

    def _project(self, project: str) -> str:
        """Return the project that stands for ``project`` of the case. RefusedError if it can't."""
        if project not in self._projects:
            self._projects[project] = self._refused(lambda: self._place.open_project(project))
        return self._projects[project]

    def _read(self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        return self._refused(lambda: self._client.call(method, request))

    def _change(self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        response = self._refused(lambda: self._client.call_once(method, request))
        if self._asked:
            self._refresh()
        return response

    @staticmethod
    def _refused(call: Callable[[], T]) -> T:
        try:
            return call()
        except UnreachableError:
            raise
        except CallError as error:
            raise RefusedError(error.code, "; ".join([error.message, *error.details])) from None

    def find_group(self, project: str, name: str) -> str | None:
        request = pb.ListGroupsRequest(project=self._project(project), name=name)
        groups = self._read(self._client.groups.ListGroups, request).groups
        return groups[0].id if groups else None

    def create_group(self, project: str, name: str) -> str:
        request = pb.CreateGroupRequest(project=self._project(project), name=name)
        return self._change(self._client.groups.CreateGroup, request).group.id

    def rename_group(self, project: str, group_id: str, name: str) -> None:
        mask = FieldMask(paths=["name"])
        request = pb.UpdateGroupRequest(project=self._project(project), id=group_id, name=name, update_mask=mask)
        self._change(self._client.groups.UpdateGroup, request)

    def delete_group(self, project: str, group_id: str) -> None:
        self._change(self._client.groups.DeleteGroup, pb.DeleteGroupRequest(project=self._project(project), id=group_id))

    def rules(self, project: str, group_id: str) -> list[Rule]:
        request = pb.ListRulesRequest(project=self._project(project), group_id=group_id)
        return [rule for page in self._client.pages(self._client.rules.ListRules, request) for rule in page.rules]

    def create_rule(self, project: str, group_id: str, spec: RuleSpec) -> str:
        request = pb.CreateRuleRequest(project=self._project(project), group_id=group_id, rule=spec)
        return self._change(self._client.rules.CreateRule, request).rule.id

    def create_rules(self, project: str, group_id: str, specs: Sequence[RuleSpec]) -> list[str]:
        request = pb.BatchCreateRulesRequest(project=self._project(project), group_id=group_id, rules=specs)
        return [rule.id for rule in self._change(self._client.rules.BatchCreateRules, request).rules]

    def replace_rules(self, project: str, group_id: str, specs: Sequence[RuleSpec]) -> list[str]:
        request = pb.ReplaceRulesRequest(project=self._project(project), group_id=group_id, rules=specs)
        return [rule.id for rule in self._change(self._client.rules.ReplaceRules, request).rules]

    def delete_rule(self, project: str, rule_id: str) -> None:
        self._change(self._client.rules.DeleteRule, pb.DeleteRuleRequest(project=self._project(project), id=rule_id))

    def create_server(self, project: str, server_id: str, addresses: Sequence[str], group_ids: Sequence[str]) -> None:
        request = pb.CreateServerRequest(project=self._project(project), id=server_id, addresses=addresses, group_ids=group_ids)
        self._change(self._client.servers.CreateServer, request)

    def set_addresses(self, project: str, server_id: str, addresses: Sequence[str]) -> None:
        mask = FieldMask(paths=["addresses"])
        request = pb.UpdateServerRequest(project=self._project(project), id=server_id, addresses=addresses, update_mask=mask)
        self._change(self._client.servers.UpdateServer, request)

    def delete_server(self, project: str, server_id: str) -> None:
        self._change(self._client.servers.DeleteServer, pb.DeleteServerRequest(project=self._project(project), id=server_id))

    def attach(self, project: str, server_id: str, group_id: str) -> None:
        request = pb.AttachGroupRequest(project=self._project(project), server_id=server_id, group_id=group_id)
        self._change(self._client.attachments.AttachGroup, request)

    def detach(self, project: str, server_id: str, group_id: str) -> None:
        request = pb.DetachGroupRequest(project=self._project(project), server_id=server_id, group_id=group_id)
        self._change(self._client.attachments.DetachGroup, request)

    def set_groups(self, project: str, server_id: str, group_ids: Sequence[str]) -> None:
        request = pb.SetServerGroupsRequest(project=self._project(project), server_id=server_id, group_ids=group_ids)
        self._change(self._client.attachments.SetServerGroups, request)

    def holdings(self) -> Holdings:
        """The revision is everybody's; what counts here are the objects of the case, with their etags."""
        objects: list[bytes] = []
        for project in self.projects:
            objects += [group.SerializeToString(deterministic=True) for group in self._groups(project)]
            objects += [rule.SerializeToString(deterministic=True) for rule in self._rules(project)]
        enforced = []
        for ruleset in self._effective():
            ruleset.revision = 0
            enforced.append(ruleset.SerializeToString(deterministic=True))
        return Holdings(revision=0, objects=objects, enforced=enforced)

    def _groups(self, project: str) -> Iterator[Group]:
        for page in self._client.pages(self._client.groups.ListGroups, pb.ListGroupsRequest(project=project)):
            yield from page.groups

    def _rules(self, project: str) -> Iterator[Rule]:
        for page in self._client.pages(self._client.rules.ListRules, pb.ListRulesRequest(project=project)):
            yield from page.rules

    def _servers(self, project: str) -> Iterator[Server]:
        for page in self._client.pages(self._client.servers.ListServers, pb.ListServersRequest(project=project)):
            yield from page.servers

    def _effective(self) -> Iterator[EffectiveRuleset]:
        for project in self.projects:
            for server in self._servers(project):
                request = pb.GetEffectiveRulesetRequest(project=project, server_id=server.id)
                yield self._client.call(self._client.rulesets.GetEffectiveRuleset, request).ruleset

    def _refresh(self) -> None:
        """Put in force what the controller says now."""
        whole = Ruleset()
        for ruleset in self._effective():
            # One server's ruleset on top of the others'.
            whole = whole.apply(replace(snapshot_of(ruleset), snapshot=False))
        self._firewall.apply(_snapshot(whole), self._clock.now_ns)

    def judge(self, packet: Packet) -> tuple[Explanation, Verdict]:
        if not self._asked:
            self._asked = True
            self._refresh()
        project, _, server_id = packet.server.partition("/")
        return self._clock.judge(self._firewall, replace(packet, server=f"{self._project(project)}/{server_id}"))

    def explain_flow(self, question: FlowQuestion) -> FlowAnswer | None:
        request = flow_request(question, self._project(question.project))
        response = self._read(self._client.rulesets.ExplainFlow, request)
        last = response.judgements[-1]
        text = "; ".join(judgement.text for judgement in response.judgements)
        return FlowAnswer(allowed=response.action == pb.ACTION_ALLOW, rule_id=last.rule_id, text=text)

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def restart_agent(self, *, warm: bool) -> None:
        flows = self._firewall.flows if warm else None
        self._firewall = Firewall(self._settings, now_ns=self._clock.now_ns, engine=self._engine, flows=flows)
        self._refresh()

    def stop_controller(self) -> None:
        """``find_obstacle`` keeps such cases away."""
        raise RefusedError("UNIMPLEMENTED", "a live controller is not stopped")

    def start_controller(self) -> None:
        """``find_obstacle`` keeps such cases away."""
        raise RefusedError("UNIMPLEMENTED", "a live controller is not started")

    def close(self) -> None:
        """Delete all servers, rules and groups of the case; an empty default group is all that stays of a project."""
        self._asked = False
        for project, real in self._projects.items():
            for server in list(self._servers(real)):
                self.delete_server(project, server.id)
            groups = list(self._groups(real))
            for group in groups:
                self.replace_rules(project, group.id, [])
            for group in groups:
                if group.name != DEFAULT_GROUP:
                    self.delete_group(project, group.id)


def _snapshot(ruleset: Ruleset) -> RulesetUpdate:
    return RulesetUpdate(
        revision=ruleset.revision,
        snapshot=True,
        sets=tuple(ruleset.sets.values()),
        groups=tuple(ruleset.groups.values()),
        servers=tuple(ruleset.servers.values()),
    )
