"""What agents are told and enforce, compared with the truth that the change log tells. The names of all checks:

``enforces``: an agent that was brought to revision r enforces exactly the state of r. ``lost``: what was acknowledged is stored,
and stays. ``span``: an agent is sent what its servers need and nothing else, and one that a server leaves keeps it until another
has it. ``in_force``: WaitForRevision says so only if it is. ``flows``: verdicts are those of the state in force, and connections
live, end and resume by it. ``bounds``: nothing is left over. ``converge``: all agents get there once the faults have ended.
``bug``: an exception that nobody expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_life import AgentLife
from truth import Branch, Key, State, spanned

from secgroups.v1 import agent_service_pb2 as pb

if TYPE_CHECKING:
    from streams import Connection
    from world import World

STRANGE_PROTOCOL = 253
# Above every revision.
UNTIL_IT_COMES_BACK = 1 << 60
# The share of the checks of an agent that send packets as well.
TRAFFIC = 0.5
_KINDS = {1: "server", 2: "group", 3: "set"}


class Checks:
    """The checks of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random
        # By line of history, agent and server: the latest revision at which some life of the agent enforced the server.
        self.had: dict[tuple[int, str, str], int] = {}

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
            problem = self.difference(life, branch, revision, objects)
            if not problem or "enforces" in self._world.ignored:
                self._fits(life, branch, revision, objects)
                self._world.traffic.end_flows(life)
                if traffic and self._random.random() < TRAFFIC:
                    self._world.traffic.send(life, branch.at(revision))
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
            rejected |= {("group", group_id) for group_id in state.groups if self.is_strange(state, ("group", group_id))}
        return rejected

    @staticmethod
    def needed_by_last_good(life: AgentLife, rejected: set[Key]) -> set[Key]:
        """Return the sets that the last good versions of rejected groups name. They stay, though nothing else may need them."""
        groups = life.firewall.ruleset.groups
        last_good = [groups[name] for kind, name in rejected if kind == "group" and name in groups]
        return {("set", rule.remote) for group in last_good for rule in group.rules if isinstance(rule.remote, str)}

    def difference(self, life: AgentLife, branch: Branch, revision: int, objects: dict[Key, Any]) -> str:
        """Say in what an agent's objects differ from what it has to hold at a revision; empty if in nothing."""
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
            if not (life.agent_id in self._world.plan.old_agents and self.is_strange(state, key)):
                return f"{key} was rejected without a reason"
        kept = self.needed_by_last_good(life, rejected)
        if kept - objects.keys():
            return f"{sorted(kept - objects.keys())} are gone, and what was in force before something was rejected needs them"
        kept -= expected.keys()
        for key in sorted(expected.keys() | objects.keys()):
            if key not in rejected | kept and expected.get(key) != objects.get(key):
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
    def is_strange(state: State, key: Key) -> bool:
        """Whether old agents have to reject an object."""
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
        """An agent is gone. Until it comes back the controller can't know that it does not enforce what it had."""
        for branch in life.branches if len(life.branches) == 1 else ():
            for name in life.servers:
                self.had[branch.number, life.agent_id, name] = UNTIL_IT_COMES_BACK

    def came(self, agent_id: str, latest_revision: int) -> None:
        """An agent has said what it holds."""
        for key, had in self.had.items():
            if key[1] == agent_id and had == UNTIL_IT_COMES_BACK:
                self.had[key] = latest_revision

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
