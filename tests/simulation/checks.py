"""What must hold at every moment, compared with the truth that the change log tells.

``enforces``: an agent that was brought to revision r enforces exactly the state of r. ``lost``: what was acknowledged is stored,
and stays. ``span``: an agent is sent what its servers need and nothing else, and one that a server leaves keeps it until another
has it. ``in_force``: WaitForRevision says so only if it is. ``flows``: verdicts are those of the state in force, and connections
live, end and resume by it. ``bounds``: nothing is left over. ``converge``: all agents get there once the faults have ended.
``bug``: an exception that nobody expected.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from agent_life import AgentLife, Flow
from truth import Branch, Key, Opening, State, allows, spanned

from secgroups.agent.flow import Reason, TcpFlags
from secgroups.v1 import agent_service_pb2 as pb

if TYPE_CHECKING:
    from controller_life import ControllerLife, RefusalError
    from streams import Connection
    from world import World

CHECKS = ("enforces", "lost", "span", "in_force", "flows", "bounds", "converge", "bug")
STRANGE_PROTOCOL = 253
# The share of the checks of an agent that send packets as well.
TRAFFIC = 0.5
_KINDS = {1: "server", 2: "group", 3: "set"}
_PORTS = (22, 80, 443, 5432)
_STRANGERS = tuple(map(ip_address, ("10.0.1.77", "203.0.113.9", "198.51.100.1", "fd00::1:1")))


class Checks:
    """The checks of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random
        # By line of history, agent and server: the latest revision at which some life of the agent enforced the server.
        self.had: dict[tuple[int, str, str], int] = {}
        self._ports_used = 0

    def _fail(self, check: str, message: str) -> None:
        self._world.fail(check, message)

    # enforces

    def agent(self, life: AgentLife, branches: list[Branch], *, traffic: bool = False) -> None:
        """Hold what an agent has in force against each line of history that it may be of; at least one must fit.

        With ``traffic`` send packets as well.
        """
        objects = life.objects()
        revision = life.replica.revision
        problems = []
        for branch in branches:
            problem = self._difference(life, branch, revision, objects)
            if not problem or "enforces" in self._world.ignored:
                self._fits(life, branch, revision, objects)
                self._end_flows(life)
                if traffic and self._random.random() < TRAFFIC:
                    self.traffic(life, branch.at(revision))
                return
            problems.append(problem)
        if branches:
            self._fail("enforces", f"{life.process.name} at revision {revision}: {'; or '.join(problems)}")

    def snapshot(self, life: AgentLife, max_removal: float) -> None:
        """A snapshot has been applied by an agent that holds back those which remove more than a share of its servers."""
        gone = life.servers - life.firewall.ruleset.servers.keys()
        if len(gone) > max_removal * len(life.servers):
            self._fail("enforces", f"{life.process.name} lost {len(gone)} of {len(life.servers)} servers to a snapshot")

    def _rejected(self, life: AgentLife, state: State) -> set[Key]:
        """Return what an agent was told and does not enforce in that version, or did not when what it has was kept."""
        ruleset = life.firewall.ruleset
        shelves: dict[int, Any] = {1: ruleset.servers, 2: ruleset.groups, 3: ruleset.sets}
        rejected = set()
        for (kind, name), version in life.replica.held:
            held = shelves[int(kind)].get(name)
            if held is None or held.version != version:
                rejected.add((_KINDS[int(kind)], name))
        if life.agent_id in self._world.plan.old_agents:
            rejected |= {("group", group_id) for group_id in state.groups if self._is_strange(state, ("group", group_id))}
        return rejected

    def _difference(self, life: AgentLife, branch: Branch, revision: int, objects: dict[Key, Any]) -> str:
        if not branch.has(revision):
            return f"line {branch.number} has no such revision"
        state = branch.at(revision)
        extra = frozenset(
            name
            for kind, name in objects
            if kind == "server" and (name not in state.servers or state.servers[name].agent_id != life.agent_id)
        )
        for name in sorted(extra):
            if name not in state.servers or not state.servers[name].agent_id:
                return f"server {name} is guarded and should not be"
            if not self._moved_from(branch, revision, name, life.agent_id):
                return f"server {name} is guarded and never was to be"
        expected = branch.spanned(revision, life.agent_id, extra)
        rejected = self._rejected(life, state) & expected.keys()
        for key in sorted(rejected):
            if not (life.agent_id in self._world.plan.old_agents and self._is_strange(state, key)):
                return f"{key} was rejected without a reason"
        for key in sorted(expected.keys() | objects.keys()):
            if key not in rejected and expected.get(key) != objects.get(key):
                return f"{key} is {objects.get(key)}, should be {expected.get(key)} (line {branch.number})"
        return ""

    def still_held(self, life: AgentLife, state: State) -> frozenset[str]:
        """Return the servers that an agent has to keep because the one they moved to can't enforce one of their groups."""
        rejected = {other.life.agent_id: other.life.rejected for other in self._world.fleet.hosts if other.life is not None}
        return frozenset(
            name
            for name in life.servers
            if name in state.servers
            and any(
                ("group", group_id) in rejected.get(state.servers[name].agent_id, ()) for group_id in state.servers[name].group_ids
            )
        )

    @staticmethod
    def _is_strange(state: State, key: Key) -> bool:
        return key[0] == "group" and any(
            rule.group_id == key[1] and rule.spec.protocol == STRANGE_PROTOCOL for rule in state.rules.values()
        )

    @staticmethod
    def _moved_from(branch: Branch, revision: int, name: str, agent_id: str) -> bool:
        """Whether an agent was to guard a server before, and the server has had an agent ever since."""
        for earlier in range(revision, -1, -1):
            server = branch.at(earlier).servers.get(name)
            if server is None or not server.agent_id:
                return False
            if server.agent_id == agent_id:
                return True
        return False

    def _fits(self, life: AgentLife, branch: Branch, revision: int, objects: dict[Key, Any]) -> None:
        servers = {name for kind, name in objects if kind == "server"}
        if life.branches == [branch]:
            for name in life.servers - servers:
                self._check_let_go(life, branch, revision, name)
                self.had[branch.number, life.agent_id, name] = revision - 1
        life.branches = [branch]
        life.servers = servers
        state = branch.at(revision)
        life.rejected = self._rejected(life, state) & branch.spanned(revision, life.agent_id, frozenset(servers)).keys()
        life.in_force[branch.number] = max(revision, life.in_force.get(branch.number, 0))
        for name in servers:
            if ("server", name) not in life.rejected:
                self.had[branch.number, life.agent_id, name] = revision

    def gone(self, life: AgentLife) -> None:
        """An agent is gone: until now it enforced what it had."""
        for branch in life.branches if len(life.branches) == 1 else ():
            for name in life.servers:
                self.had[branch.number, life.agent_id, name] = branch.latest.revision

    # span

    def _check_let_go(self, life: AgentLife, branch: Branch, revision: int, name: str) -> None:
        """A server that moved away must be in force elsewhere before it goes.

        Not so if another process came with the same id and without the server: the controller then takes it for let go.
        """
        if life.agent_id in self._world.fleet.twinned:
            return
        left = revision
        while left > 0:
            server = branch.at(left).servers.get(name)
            if server is None or not server.agent_id:
                return
            if server.agent_id == life.agent_id:
                break
            left -= 1
        else:
            return
        elsewhere = any(
            number == branch.number and held == name and agent_id != life.agent_id and had > left
            for (number, agent_id, held), had in self.had.items()
        ) or any(
            other.life is not None and other.agent_id != life.agent_id and other.life.process.alive and name in other.life.servers
            for other in self._world.fleet.hosts
        )
        if not elsewhere:
            self._fail(
                "span", f"{life.process.name} let go of {name} at {revision}; it left at {left + 1} and no other agent has had it"
            )

    def sent(self, connection: Connection, message: pb.SubscribeResponse) -> None:
        """Look at what the controller tells an agent."""
        kind = message.WhichOneof("message")
        if kind == "update":
            self._sent_update(connection, message.update)
        elif kind == "sync_point":
            connection.step_from = None

    def _sent_update(self, connection: Connection, update: pb.Update) -> None:
        branch, agent_id, held = connection.controller.branch, connection.agent.agent_id, connection.held_servers
        if not branch.has(update.revision):
            self._fail("span", f"update of revision {update.revision}, the store is at {branch.latest.revision}")
            return
        # A step may be sent over a while; what is left of a large object is of the revision at which its first part was made.
        first = connection.step_from if connection.step_from is not None else update.revision
        connection.step_from = first if update.more else None
        states = [branch.at(revision) for revision in range(first, update.revision + 1)]
        for server in update.servers:
            guards = any(server.server in state.servers and state.servers[server.server].agent_id == agent_id for state in states)
            # What it came with it may be given again: until its first acknowledgement the controller takes it to have that.
            if not guards and server.server not in held | connection.came_with:
                self._fail("span", f"{agent_id} is sent server {server.server}, which it is not to guard")
            held.add(server.server)
        spans = [spanned(state, agent_id, held).keys() for state in states]
        sent: list[Key] = [("group", group.group_id) for group in update.groups]
        sent += [("set", made.group_id) for made in (*update.sets, *update.set_patches)]
        for key in sent:
            if not any(key in span for span in spans):
                self._fail("span", f"{agent_id} is sent {key} at revision {update.revision}, outside of its span")
        held.difference_update(update.removed_servers)
        self._world.count("removals", len(update.removed_servers) + len(update.removed_groups) + len(update.removed_sets))
        self._world.count("patches", len(update.set_patches))
        self._world.count("parts of a step", int(update.more))

    # lost

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

    # in force

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
        return any(not self._difference(life, branch, number, objects) for number in later)

    def _check_not_rejected(self, life: AgentLife, branch: Branch, revision: int) -> None:
        # What the revision itself changed: groups that were rejected before it, and that it brings a server to, do not count.
        before, after = branch.at(revision - 1), branch.at(revision)
        changed = {("group", group_id) for group_id in after.groups if before.rules_of(group_id) != after.rules_of(group_id)}
        refused = {key for key in changed & life.rejected if self._is_strange(branch.at(revision), key)}
        if refused and life.process.alive:
            self._fail(
                "in_force", f"revision {revision} is said to be in force; {life.process.name} has rejected {sorted(refused)}"
            )

    # flows

    @staticmethod
    def _end_flows(life: AgentLife) -> None:
        """Forget connections whose server or address is not guarded any more: they are over, whatever comes after."""
        servers = life.firewall.ruleset.servers
        life.host.watched = [
            flow
            for flow in life.host.watched
            if flow.opening.server in servers and flow.opening.local in servers[flow.opening.server].addresses
        ]

    def traffic(self, life: AgentLife, state: State) -> None:
        """Send packets of the connections that there are, and ask for verdicts on others."""
        for flow in life.host.watched:
            opening = flow.opening
            if opening.server not in state.servers or self._depends_on(life.rejected, state, opening.server):
                continue
            expected = Reason.ESTABLISHED if allows(state, opening) else Reason.REVOKED
            found = life.decide(flow.packet(TcpFlags.ACK)).reason
            self._world.count(f"packet {found.name.lower()}")
            if found is not expected:
                self._fail(
                    "flows", f"{life.process.name}: {opening} is {found.name}, should be {expected.name} at {state.revision}"
                )
        self._try_new(life, state)

    def _try_new(self, life: AgentLife, state: State) -> None:
        servers = sorted(name for name in life.firewall.ruleset.servers if name in state.servers)
        for _ in range(2 if servers else 0):
            opening = self._some_opening(state, self._random.choice(servers))
            if opening is None or self._depends_on(life.rejected, state, opening.server):
                continue
            self._ports_used += 1
            flow = Flow(opening, 10_000 + self._ports_used % 50_000)
            expected = Reason.NEW if allows(state, opening) else Reason.NO_RULE
            found = life.explained(flow.packet(TcpFlags.SYN))
            self._world.count(f"packet {found.name.lower()}")
            if found is not expected:
                self._fail(
                    "flows", f"{life.process.name}: {opening} is {found.name}, should be {expected.name} at {state.revision}"
                )
            elif found is Reason.NEW and not life.open(flow):
                self._fail("flows", f"{life.process.name}: {opening} was to be NEW and is not")

    def _some_opening(self, state: State, name: str) -> Opening | None:
        local = self._random.choice(state.servers[name].addresses)
        others = [address for key in sorted(state.servers) for address in state.servers[key].addresses]
        remotes = [address for address in (*others, *_STRANGERS) if address.version == local.version and address != local]
        if not remotes:
            return None
        return Opening(name, self._random.choice((1, 1, 2)), local, self._random.choice(remotes), self._random.choice(_PORTS))

    @staticmethod
    def _depends_on(rejected: set[Key], state: State, name: str) -> bool:
        return any(kind != "server" or key == name for kind, key in rejected) and bool(rejected)


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
