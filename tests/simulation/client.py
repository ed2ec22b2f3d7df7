"""Clients that change things at random through the services, and hold the controller to what it has acknowledged."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

from controller_life import RefusalError
from controller_seat import LostError
from truth import State

from secgroups.v1 import attachment_service_pb2 as attachments
from secgroups.v1 import group_service_pb2 as groups
from secgroups.v1 import rule_service_pb2 as rules
from secgroups.v1 import ruleset_service_pb2 as rulesets
from secgroups.v1 import server_service_pb2 as servers
from secgroups.v1 import types_pb2 as types

if TYPE_CHECKING:
    from world import World

PROJECTS = ("p", "q")
PORTS = (22, 80, 443, 5432)
CIDRS = ("10.0.0.0/8", "10.0.1.0/24", "203.0.113.0/24", "0.0.0.0/0", "::/0", "fd00::/64")
# A protocol that no program of today knows; see the old agents of the plan.
STRANGE_PROTOCOL = 253
GROUPS_MAX = 6
RULES_PER_GROUP_MAX = 6
SERVERS_MAX = 10
CALL_TIMEOUT_S = 5.0
# The share of changes that are only tried.
PREVIEWED = 0.1
CALL_ATTEMPTS_MAX = 40


class Client:
    """One client: a change, a pause, a change."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._random = Random(f"client {world.plan.seed} {number}")
        self._made = 0

    async def run(self, until_s: float) -> None:
        """Go on until a moment."""
        while self._world.loop.time() < until_s:
            await self.step()
            await asyncio.sleep(self._random.random() * 2 * self._world.plan.think_s)

    async def step(self) -> None:
        """Change something."""
        method, request = self._some_change(self._world.seat.branch.latest)
        if self._random.random() < PREVIEWED:
            request.validate_only = True
            if "request_id" in request.DESCRIPTOR.fields_by_name:
                request.ClearField("request_id")
        try:
            response = await self._call(method, request)
        except RefusalError as refusal:
            self._world.count(f"refused {refusal.code}")
            return
        except LostError:
            self._world.count("change_in_doubt")
            return
        if request.validate_only:
            self._world.count("previewed")
            return
        self._world.count("acknowledged")
        if self._random.random() < 0.3:
            await self._wait(response.revision)

    async def _call(self, method: str, request: Any) -> Any:
        """Make a call, one with a request id again and again until it is answered."""
        repeatable = bool(getattr(request, "request_id", ""))
        in_doubt = False
        for _ in range(CALL_ATTEMPTS_MAX):
            try:
                branch, response = await self._world.seat.call(method, request, CALL_TIMEOUT_S)
            except RefusalError as refusal:
                if refusal.code == "UNAVAILABLE" and repeatable:
                    await asyncio.sleep(0.2 + self._random.random() * 0.3)
                    continue
                self._world.promises.refused(method, request, refusal, in_doubt=in_doubt)
                raise
            except LostError as lost:
                in_doubt = in_doubt or lost.reached
                if not repeatable and in_doubt:
                    raise
                await asyncio.sleep(0.2 + self._random.random() * 0.3)
            else:
                self._world.promises.acknowledged(branch, method, request, response)
                return response
        raise LostError(reached=True)

    async def _wait(self, revision: int) -> None:
        request = rulesets.WaitForRevisionRequest(revision=revision)
        request.timeout.FromMilliseconds(self._random.choice((0, 200, 3_000)))
        try:
            _, response = await self._world.seat.call("WaitForRevision", request, CALL_TIMEOUT_S)
        except (RefusalError, LostError):
            return
        self._world.count("in_force" if response.in_force else "not_in_force")

    # Changes.

    def _some_change(self, state: State) -> tuple[str, Any]:
        project = PROJECTS[0] if self._random.random() < 0.85 else PROJECTS[1]
        group_ids = sorted(key for key, group in state.groups.items() if group.project == project)
        server_ids = sorted(server.id for server in state.servers.values() if server.project == project)
        choices = ["create_group"] if len(group_ids) < GROUPS_MAX else ["delete_group"]
        if group_ids:
            choices += ["create_rule", "delete_rule", "replace_rules", "rename_group", "delete_group"]
            choices += ["create_server"] if len(server_ids) < SERVERS_MAX else []
        if server_ids:
            choices += ["delete_server", "attach", "detach", "set_groups", "move", "readdress"]
        (kind,) = self._random.choices(choices, [self._world.plan.mix[name] for name in choices])
        return getattr(self, f"_{kind}")(state, project, group_ids, server_ids)  # type: ignore[no-any-return]

    def _new_name(self, what: str) -> str:
        self._made += 1
        return f"{what}-{self._number}-{self._made}"

    def _create_group(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        name = self._new_name("group")
        return "CreateGroup", groups.CreateGroupRequest(project=project, name=name, request_id=name)

    def _rename_group(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        request = groups.UpdateGroupRequest(project=project, id=self._random.choice(group_ids), name=self._new_name("renamed"))
        request.update_mask.paths.append("name")
        return "UpdateGroup", request

    def _delete_group(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        return "DeleteGroup", groups.DeleteGroupRequest(project=project, id=self._random.choice(group_ids))

    def _create_rule(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        group_id = self._random.choice(group_ids)
        if sum(rule.group_id == group_id for rule in state.rules.values()) >= RULES_PER_GROUP_MAX:
            return self._replace_rules(state, project, group_ids, server_ids)
        name = self._new_name("rule")
        if self._random.random() < 0.3:
            specs = [self._spec(group_ids) for _ in range(self._random.randint(1, 3))]
            return "BatchCreateRules", rules.BatchCreateRulesRequest(
                project=project, group_id=group_id, rules=specs, request_id=name
            )
        return "CreateRule", rules.CreateRuleRequest(
            project=project, group_id=group_id, rule=self._spec(group_ids), request_id=name
        )

    def _replace_rules(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        specs = [self._spec(group_ids) for _ in range(self._random.randint(0, 4))]
        return "ReplaceRules", rules.ReplaceRulesRequest(project=project, group_id=self._random.choice(group_ids), rules=specs)

    def _delete_rule(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        held = sorted(key for key, rule in state.rules.items() if rule.project == project)
        return "DeleteRule", rules.DeleteRuleRequest(project=project, id=self._random.choice(held) if held else "none")

    def _spec(self, group_ids: list[str]) -> types.RuleSpec:
        random = self._random
        spec = types.RuleSpec(
            direction=random.choice((types.DIRECTION_INGRESS, types.DIRECTION_INGRESS, types.DIRECTION_EGRESS)),
            protocol=random.choice((types.PROTOCOL_TCP,) * 4 + (types.PROTOCOL_ANY, types.PROTOCOL_UDP, types.PROTOCOL_ICMP)),
        )
        if self._world.plan.old_agents and random.random() < 0.1:
            spec.protocol = types.PROTOCOL_NUMBER
            spec.protocol_number = STRANGE_PROTOCOL
        if spec.protocol == types.PROTOCOL_TCP and random.random() < 0.8:
            spec.ports.first = random.choice(PORTS)
            spec.ports.last = random.choice((spec.ports.first, 6_000))
        remote = random.random()
        if remote < 0.5:
            spec.group_id = random.choice(group_ids)
        elif remote < 0.9:
            spec.cidr = random.choice(CIDRS)
        else:
            spec.anywhere.SetInParent()
        return spec

    def _create_server(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        name = self._new_name("server")
        return "CreateServer", servers.CreateServerRequest(
            project=project,
            id=name,
            addresses=self._addresses(),
            agent_id=self._agent(),
            group_ids=self._some_groups(group_ids),
            request_id=name,
        )

    def _delete_server(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        return "DeleteServer", servers.DeleteServerRequest(project=project, id=self._random.choice(server_ids))

    def _move(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        request = servers.UpdateServerRequest(project=project, id=self._random.choice(server_ids), agent_id=self._agent())
        request.update_mask.paths.append("agent_id")
        if self._random.random() < 0.2:
            request.group_ids.extend(self._some_groups(group_ids))
            request.update_mask.paths.append("group_ids")
        return "UpdateServer", request

    def _readdress(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        request = servers.UpdateServerRequest(project=project, id=self._random.choice(server_ids), addresses=self._addresses())
        request.update_mask.paths.append("addresses")
        return "UpdateServer", request

    def _attach(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        return "AttachGroup", attachments.AttachGroupRequest(
            project=project, server_id=self._random.choice(server_ids), group_id=self._random.choice(group_ids)
        )

    def _detach(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        server = state.servers[f"{project}/{self._random.choice(server_ids)}"]
        return "DetachGroup", attachments.DetachGroupRequest(
            project=project, server_id=server.id, group_id=self._random.choice(server.group_ids)
        )

    def _set_groups(self, state: State, project: str, group_ids: list[str], server_ids: list[str]) -> tuple[str, Any]:
        return "SetServerGroups", attachments.SetServerGroupsRequest(
            project=project, server_id=self._random.choice(server_ids), group_ids=self._some_groups(group_ids) or group_ids[:1]
        )

    def _some_groups(self, group_ids: list[str]) -> list[str]:
        return self._random.sample(group_ids, self._random.randint(0, min(3, len(group_ids))))

    def _agent(self) -> str:
        return "" if self._random.random() < 0.08 else self._random.choice(self._world.plan.agent_ids)

    def _addresses(self) -> list[str]:
        number = self._random.randrange(60)
        addresses = [f"10.0.{number % 3}.{number + 1}"]
        if self._random.random() < 0.3:
            addresses.append(f"fd00::{number + 1:x}")
        return addresses
