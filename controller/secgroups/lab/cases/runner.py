"""Runs a case in a world of its own, step by step, up to the first that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from secgroups.agent.flow import Packet, Reason
from secgroups.lab.cases.changes import Changes
from secgroups.lab.cases.judging import FailedError, Judgement, check, pass_judges
from secgroups.lab.cases.model import (
    AddGroup,
    Advance,
    Case,
    Change,
    Control,
    Expectation,
    Flow,
    FlowPacket,
    LoosePacket,
    RestartAgent,
    StartController,
    Step,
    StopController,
    Traffic,
)
from secgroups.lab.cases.policy import policy_question
from secgroups.lab.cases.roster import Roster, UnclearError
from secgroups.lab.cases.traffic import Conversation, Judge, Numbers, conversation_of, flow_packet, loose_packet
from secgroups.lab.cases.world import OutOfStepError, RefusedError, World

WorldFactory = Callable[[Case], World]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a case went. ``failed_step`` counts from 1, 0 is the setup. ``skipped`` says why it was not run; ``ok`` is False then."""

    case: Case
    ok: bool
    failed_step: int | None = None
    expected: str = ""
    got: str = ""
    explain: str = ""
    skipped: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        answer: dict[str, Any] = {
            "file": self.case.file,
            "name": self.case.name,
            "ok": None if self.skipped else self.ok,
            "failed_step": self.failed_step,
            "expected": self.expected or None,
            "got": self.got or None,
            "explain": self.explain or None,
        }
        return {**answer, "skipped": self.skipped} if self.skipped else answer


def run_case(case: Case, make_world: WorldFactory) -> Outcome:
    """Run ``case`` in a new world, which is closed afterwards."""
    world = make_world(case)
    try:
        return CaseRun(case, world).run()
    finally:
        world.close()


@dataclass
class CaseRun:
    """One case in one world, which the caller closes."""

    case: Case
    world: World
    numbers: Numbers = field(default_factory=Numbers)
    conversations: dict[str, Conversation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roster = Roster(self.case.project)
        self.changes = Changes(self.world, self.roster)

    def run(self) -> Outcome:
        """Set up and take all steps, or those up to the first that fails; no exception."""
        number = 0
        try:
            self._set_up()
            for step in self.case.steps:
                number = step.number
                self.run_step(step)
        except FailedError as failed:
            return self._failure(number, failed.expected, failed.got, failed.explain)
        except OutOfStepError as error:
            return self._failure(number, "controller and engine hold the same", str(error))
        except RefusedError as error:
            return self._failure(number, "an answer", str(error))
        except UnclearError as error:
            return self._failure(number, "a step that can be run", str(error))
        except Exception as error:
            # A bug below is the failure of this case, not the end of the run.
            got = "".join(traceback.format_exception_only(error)).strip()
            return self._failure(number, "no crash", got, traceback.format_exc())
        return Outcome(case=self.case, ok=True)

    def _failure(self, number: int, expected: str, got: str, explain: str = "") -> Outcome:
        return Outcome(case=self.case, ok=False, failed_step=number, expected=expected, got=got, explain=explain)

    def _set_up(self) -> None:
        try:
            self.changes.set_up(self.case.groups, self.case.servers)
        except RefusedError as error:
            raise FailedError("groups and servers set up", str(error)) from None

    def pass_packet(self, packet: Packet, judges: Sequence[Judge]) -> Judgement:
        """Send a packet past ``judges``; return the last judgement made. FailedError if one of them contradicts itself."""
        return pass_judges(self.world, packet, judges)

    def run_step(self, step: Step) -> None:
        """Take one step. FailedError if it does not come to what it must."""
        action = step.action
        if isinstance(action, Traffic):
            self._run_traffic(action, step.expected)
        elif isinstance(action, Control):
            self._run_control(action)
        elif step.expected.error:
            self._run_refused(action, step.expected)
        else:
            try:
                self.changes.make(action)
            except RefusedError as error:
                raise FailedError("success", str(error)) from None

    def _run_control(self, action: Control) -> None:
        match action:
            case Advance(seconds=seconds):
                self.world.advance(seconds)
            case RestartAgent(warm=warm):
                self.world.restart_agent(warm=warm)
            case StopController():
                self.world.stop_controller()
            case StartController():
                self.world.start_controller()

    def _run_refused(self, change: Change, expected: Expectation) -> None:
        before = self.world.holdings()
        try:
            self.changes.make(change)
        except RefusedError as error:
            self._check_refusal(error, expected)
        else:
            raise FailedError(expected.error, "success")
        after = self.world.holdings()
        # A new group with its rules takes several calls; what was made of it was unmade, at the cost of revisions.
        undone = isinstance(change, AddGroup) and before.objects == after.objects
        if before != after and not undone:
            raise FailedError(f"{expected.error} and nothing changed", f"{expected.error}, but {before.difference(after)}")

    def _check_refusal(self, error: RefusedError, expected: Expectation) -> None:
        if error.code != expected.error:
            raise FailedError(expected.error, str(error))
        if expected.error_contains and expected.error_contains.lower() not in error.text.lower():
            raise FailedError(f"{expected.error} that says {expected.error_contains!r}", str(error))
        if expected.error_names:
            ids = self.changes.ids_of(expected.error_names)
            if not any(error.names(id_) for id_ in ids):
                raise FailedError(f"{expected.error} that names {expected.error_names} ({' or '.join(sorted(ids))})", str(error))

    def _run_traffic(self, action: Traffic, expected: Expectation) -> None:
        rule_id = self.changes.rule_ids[expected.rule][1] if expected.rule else None
        match action:
            case Flow():
                self._run_flow(action, expected, rule_id)
            case FlowPacket():
                packet, judges = flow_packet(action, self.conversations[action.flow], self.roster)
                check(self.pass_packet(packet, judges), expected, rule_id)
            case LoosePacket():
                quoted = None if action.quotes is None else self.conversations[action.quotes]
                packet, judges = loose_packet(action, quoted, self.roster, self.numbers)
                check(self.pass_packet(packet, judges), expected, rule_id)

    def _run_flow(self, action: Flow, expected: Expectation, rule_id: str | None) -> None:
        conversation = conversation_of(action, self.roster, self.numbers)
        if action.name:
            self.conversations[action.name] = conversation
        (_, opening), *answers = conversation.exchange()
        first = self.pass_packet(opening, conversation.judges(from_opener=True))
        check(first, expected, rule_id)
        self._check_policy(action, conversation, first)
        if not first.allowed:
            return
        for from_opener, packet in answers:
            judgement = self.pass_packet(packet, conversation.judges(from_opener))
            if not judgement.allowed:
                what = "the last packet of the handshake" if from_opener else "its answer"
                raise FailedError(f"allow of {what} too", str(judgement), judgement.grounds)

    def _check_policy(self, flow: Flow, conversation: Conversation, first: Judgement) -> None:
        """The controller must say the same as the engine, wherever rules alone decided."""
        question = policy_question(conversation)
        own_number = flow.source_port is None and flow.icmp_id is None
        if question is None or not own_number or first.verdict.reason not in (Reason.NEW, Reason.NO_RULE):
            return
        answer = self.world.explain_flow(question)
        if answer is None:
            return
        if answer.allowed != first.allowed or (answer.allowed and answer.rule_id != first.verdict.rule_id):
            told = f"allow by rule {answer.rule_id}" if answer.allowed else "deny"
            raise FailedError(f"the engine to say what ExplainFlow said: {told}", str(first), answer.text)
