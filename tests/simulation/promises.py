"""What the controller promises its clients: what it acknowledges is stored, and what it says is in force is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from truth import Branch, Key, State, rule_shape

if TYPE_CHECKING:
    from agent_life import AgentLife
    from controller_life import ControllerLife, RefusalError
    from world import World


class Promises:
    """The checks of what clients are told."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _fail(self, check: str, message: str) -> None:
        self._world.fail(check, message)

    def acknowledged(self, branch: Branch, method: str, request: Any, response: Any) -> None:
        """Hold a change that was acknowledged against what is stored."""
        if getattr(request, "validate_only", False):
            self._previewed(branch, method, response)
        elif not branch.has(response.revision):
            self._fail(
                "lost", f"{method} was acknowledged at revision {response.revision}, the log ends at {branch.latest.revision}"
            )
        elif not _is_so(method, request, response, branch.at(response.revision)):
            self._fail("lost", f"{method} {request} was acknowledged as {response}, which is not what is stored")

    def _previewed(self, branch: Branch, method: str, response: Any) -> None:
        """What was only tried has no revision of its own, and counts flows on agents that there are."""
        if not branch.has(response.revision):
            self._fail("lost", f"a preview of {method} has revision {response.revision}, the log ends at {branch.latest.revision}")
        cut = response.preview.flows_cut
        self._world.count("preview counted", int(cut.agents_counted > 0))
        self._world.count("preview not counted", int(cut.uncounted_count > 0))

    def refused(self, method: str, request: Any, refusal: RefusalError, *, in_doubt: bool) -> None:
        """Names are used once: only a repeat that is not recognised can meet its own first try."""
        if (
            refusal.code == "ALREADY_EXISTS"
            and method in ("CreateGroup", "CreateServer")
            and in_doubt
            and "address" not in str(refusal)
        ):
            self._fail("lost", f"{method} was repeated with its request id and refused: {refusal}")
        if refusal.code in ("INTERNAL", "UNKNOWN"):
            self._fail("bug", f"{method}: {refusal}")

    def said_in_force(self, life: ControllerLife, revision: int) -> None:
        """WaitForRevision has just said that a revision is in force."""
        branch = life.branch
        if revision < 1:
            return
        for agent_id in sorted(branch.touched(revision)):
            status = life.core.publisher.find_status(agent_id)
            known = self._world.fleet.lives_by_boot.get(status.boot_id) if status else None
            if not _guards(branch.latest, agent_id) and not (status and status.connected):
                # One that is away and guards nothing any more is waited for only as long as the controller remembers.
                self._world.count("in_force without an agent that is gone")
            elif known is None:
                self._fail("in_force", f"revision {revision} is said to be in force; {agent_id}, which it touches, never connected")
            elif known.in_force.get(branch.number, -1) < revision and not self._has_it_all(known, branch, revision):
                self._fail(
                    "in_force",
                    f"revision {revision} is said to be in force; {known.process.name} is at "
                    f"{known.in_force.get(branch.number)} (line {branch.number})",
                )
            else:
                self._check_not_rejected(known, branch, revision)

    def _has_it_all(self, life: AgentLife, branch: Branch, revision: int) -> bool:
        """Whether an agent enforces the state of a revision or of a later one though it was told of none: it did before."""
        objects = life.objects()
        later = range(revision, branch.latest.revision + 1)
        return any(not self._world.checks.difference(life, branch, number, objects) for number in later)

    def _check_not_rejected(self, life: AgentLife, branch: Branch, revision: int) -> None:
        # What the revision itself changed: groups that were rejected before it, and that it brings a server to, do not count.
        before, after = branch.at(revision - 1), branch.at(revision)
        changed = {("group", group_id) for group_id in after.groups if before.rules_of(group_id) != after.rules_of(group_id)}
        refused = {key for key in changed & life.rejected if self._world.checks.is_strange(branch.at(revision), key)}
        # One that has taken a later version since, and then rejected one that is later still, has the revision in force.
        objects = life.objects()
        later = range(revision, branch.latest.revision + 1)
        refused = {key for key in refused if not any(objects.get(key) == _found(branch.at(number), key) for number in later)}
        if refused and life.process.alive:
            self._fail(
                "in_force", f"revision {revision} is said to be in force; {life.process.name} has rejected {sorted(refused)}"
            )


def _found(state: State, key: Key) -> Any:
    """Return a group as agents hold it at a revision; something else if there is no such group."""
    if key[1] not in state.groups:
        return ()
    rules = [rule for rule in state.rules.values() if rule.group_id == key[1]]
    return state.groups[key[1]].name, frozenset(map(rule_shape, rules))


def _guards(state: State, agent_id: str) -> bool:
    return any(server.agent_id == agent_id for server in state.servers.values())


def _is_so(method: str, request: Any, response: Any, state: State) -> bool:
    """Whether a state shows what a change was acknowledged with."""
    match method:
        case "CreateGroup":
            return response.group.id in state.groups and state.groups[response.group.id].name == request.name
        case "UpdateGroup":
            return state.groups[request.id].name == request.name
        case "DeleteGroup":
            return request.id not in state.groups
        case "CreateRule":
            return response.rule.id in state.rules and state.rules[response.rule.id].group_id == request.group_id
        case "BatchCreateRules":
            return all(rule.id in state.rules for rule in response.rules) and len(response.rules) == len(request.rules)
        case "ReplaceRules":
            held = {rule.id for rule in state.rules.values() if rule.group_id == request.group_id}
            return held == {rule.id for rule in response.rules}
        case "DeleteRule":
            return request.id not in state.rules
        case "DeleteServer":
            return f"{request.project}/{request.id}" not in state.servers
    server = state.servers[f"{request.project}/{response.server.id}"]
    return (
        list(map(str, server.addresses)) == list(response.server.addresses)
        and server.agent_id == response.server.agent_id
        and list(server.group_ids) == list(response.server.group_ids)
        and _as_asked(method, request, server)
    )


def _as_asked(method: str, request: Any, server: Any) -> bool:
    match method:
        case "CreateServer":
            return list(map(str, server.addresses)) == list(request.addresses) and server.agent_id == request.agent_id
        case "UpdateServer":
            asked = set(request.update_mask.paths)
            return ("agent_id" not in asked or server.agent_id == request.agent_id) and (
                "addresses" not in asked or list(map(str, server.addresses)) == list(request.addresses)
            )
        case "AttachGroup":
            return request.group_id in server.group_ids
        case "DetachGroup":
            return request.group_id not in server.group_ids
        case "SetServerGroups":
            return set(request.group_ids) == set(server.group_ids)
    raise AssertionError(method)
