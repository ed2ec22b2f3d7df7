"""What of a case can be known to be wrong before it runs: references to what is not there at that step."""

from __future__ import annotations

from secgroups.lab.cases.model import (
    Action,
    AddGroup,
    AddRule,
    AddServer,
    Attach,
    DeleteEqualRule,
    DeleteGroup,
    DeleteRule,
    Detach,
    Expectation,
    Flow,
    FlowPacket,
    GroupRemote,
    GroupSetup,
    LoosePacket,
    RemoveServer,
    RenameGroup,
    RuleText,
    ServerSetup,
    SetAddresses,
    SetGroups,
    SetRules,
    StartController,
    Step,
    StopController,
    Traffic,
)
from secgroups.lab.cases.roster import Roster, UnclearError
from secgroups.lab.cases.setups import ref_of
from secgroups.lab.cases.traffic import Conversation, Numbers, conversation_of, flow_packet, loose_packet


class Checker:
    """Follows a case step by step, as if every change succeeded that is expected to. All methods raise UnclearError."""

    def __init__(self, project: str) -> None:
        self._roster = Roster(project)
        self._numbers = Numbers()
        self._conversations: dict[str, Conversation] = {}
        self._aliases: set[str] = set()
        # Whatever was ever called by a name: an error may name what is gone.
        self._named: set[str] = set()
        self._running = True

    def meet_group(self, group: GroupSetup) -> None:
        """Take a group of the setup in; groups of the setup may refer to one another in any order."""
        name = self._roster.group(group.group, group.group.project)
        self._roster.groups.add(name)
        self._named.add(str(group.group))

    def check_group(self, group: GroupSetup) -> None:
        """Check the rules of a group."""
        name = self._roster.group(group.group)
        self._check_rules(group.rules, name.project)

    def check_server(self, server: ServerSetup) -> None:
        """Check the groups of a server of the setup and take it in."""
        self._check_server_setup(server)
        self._roster.add_server(self._roster.server(server.server), server.addresses)
        self._named.add(str(server.server))

    def check_step(self, step: Step) -> None:
        """Check a step and move on to what is there after it."""
        action = step.action
        if isinstance(action, Traffic):
            self._check_traffic(action)
        elif isinstance(action, StopController | StartController):
            self._check_control(action)
        elif not step.expected.error:
            self._check_change(action)
            self._roster.apply(action)
        self._check_expectation(step.expected)

    def _check_expectation(self, expected: Expectation) -> None:
        if expected.rule and expected.rule not in self._aliases:
            raise UnclearError("", f"rule {expected.rule}: no rule was given this name (as) before")
        if expected.error_names and not self._is_named(expected.error_names):
            raise UnclearError("", f"error_names {expected.error_names}: no rule, group or server was called that before")

    def _is_named(self, text: str) -> bool:
        ref = ref_of(text)
        known_group = self._roster.has_group(self._roster.group(ref))
        return known_group or text in self._aliases or text in self._named or self._roster.server(ref) in self._roster.ever

    def _check_control(self, action: StopController | StartController) -> None:
        starts = isinstance(action, StartController)
        if starts == self._running:
            raise UnclearError("", f"the controller is {'running' if starts else 'stopped'} already")
        self._running = starts

    def _check_traffic(self, action: Traffic) -> None:
        if isinstance(action, Flow):
            conversation = conversation_of(action, self._roster, self._numbers)
            if action.name:
                self._conversations[action.name] = conversation
        elif isinstance(action, FlowPacket):
            flow_packet(action, self._conversation("flow", action.flow), self._roster)
        elif isinstance(action, LoosePacket):
            quoted = None if action.quotes is None else self._conversation("quotes", action.quotes)
            loose_packet(action, quoted, self._roster, self._numbers)

    def _conversation(self, key: str, name: str) -> Conversation:
        if name not in self._conversations:
            raise UnclearError(key, f"no flow {name} was opened before")
        return self._conversations[name]

    def _check_change(self, action: Action) -> None:
        roster = self._roster
        if isinstance(action, AddRule | DeleteEqualRule):
            home = roster.get_group("group", action.group).project
            self._check_rules((action.rule,), home)
        elif isinstance(action, SetRules):
            self._check_rules(action.rules, roster.get_group("group", action.group).project)
        elif isinstance(action, DeleteRule):
            if action.alias not in self._aliases:
                raise UnclearError("rule", f"no rule was given the name {action.alias} (as) before")
        elif isinstance(action, Attach | Detach):
            home = roster.get_server("server", action.server).project
            roster.get_group("group", action.group, home)
        elif isinstance(action, SetGroups):
            home = roster.get_server("server", action.server).project
            for ref in action.groups:
                roster.get_group("groups", ref, home)
        elif isinstance(action, AddServer):
            self._check_server_setup(action.setup)
        elif isinstance(action, RemoveServer | SetAddresses):
            roster.get_server("server", action.server)
        elif isinstance(action, AddGroup):
            self._check_added_group(action.setup)
        elif isinstance(action, DeleteGroup | RenameGroup):
            name = roster.get_group("group", action.group)
            self._named.add(str(action.group))
            self._named.add(name.name)

    def _check_added_group(self, setup: GroupSetup) -> None:
        # The rules of a new group may name it as their remote.
        self.meet_group(setup)
        self.check_group(setup)

    def _check_server_setup(self, setup: ServerSetup) -> None:
        home = self._roster.server(setup.server).project
        for ref in setup.groups or ():
            self._roster.get_group("groups", ref, home)

    def _check_rules(self, rules: tuple[RuleText, ...], home: str) -> None:
        for rule in rules:
            if isinstance(rule.remote, GroupRemote):
                self._roster.get_group("remote", rule.remote.group, home)
            if rule.alias:
                self._aliases.add(rule.alias)
