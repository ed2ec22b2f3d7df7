"""From a case file to cases that make sense: every mistake is found with its file, line and field before anything runs.

First everything is read, each mistake collected; if there is none in a case, its references are checked in the order of its steps,
up to the first that can't be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from secgroups.agent.flow import Reason
from secgroups.lab.cases.checks import Checker
from secgroups.lab.cases.model import (
    DEFAULT_PROJECT,
    Action,
    Case,
    Expectation,
    GroupSetup,
    ServerSetup,
    Settings,
    Step,
    Unparsable,
)
from secgroups.lab.cases.nodes import CaseFileError, Field, Problem, Refusal, ValueRefusal, read_file
from secgroups.lab.cases.roster import UnclearError
from secgroups.lab.cases.setups import GROUP_KEYS, SERVER_KEYS, read_group, read_server, read_settings, ref_of
from secgroups.lab.cases.verbs import CHANGES, CONTROLS, PLAIN, TRAFFIC

CASE_KEYS = ("name", "project", "settings", "groups", "servers", "steps")
VERBS = {**TRAFFIC, **CHANGES, **CONTROLS}

_TRAFFIC_KEYS = ("expect", "reason", "rule")
_CHANGE_KEYS = ("error", "error_contains", "error_names")
_STEP_KEYS = (*_TRAFFIC_KEYS, *_CHANGE_KEYS, "note")

# The names of the gRPC status codes that are errors.
ERROR_CODES = (
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)


def load(files: Sequence[str]) -> list[Case]:
    """Return the cases of all files in order. CaseFileError with the mistakes of all of them."""
    cases: list[Case] = []
    problems: list[Problem] = []
    for file in files:
        try:
            cases += load_file(file)
        except CaseFileError as error:
            problems += error.problems
    if problems:
        raise CaseFileError(problems)
    return cases


def load_file(file: str) -> list[Case]:
    """Return the cases of one file. CaseFileError with its mistakes."""
    problems: list[Problem] = []
    cases: list[Case] = []
    lines: dict[str, int] = {}
    with _collecting(problems, file):
        root = read_file(file)
        items = root.items()
        if not items:
            raise root.refusal("holds no cases")
        for item in items:
            draft = _Draft(item)
            with _collecting(problems, file):
                cases.append(draft.read())
                name, line = cases[-1].name, cases[-1].line
                if lines.setdefault(name, line) != line:
                    raise item.under("name").refusal(f"case {name!r} stands twice, first in line {lines[name]}")
            problems += draft.problems
    if problems:
        raise CaseFileError(problems)
    return cases


@contextmanager
def _collecting(problems: list[Problem], file: str) -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        problems.append(refusal.problem)
    except RecursionError:
        problems.append(Problem(file=file, line=0, field="", message="is nested too deeply, or holds itself"))


@dataclass
class _Draft:
    """A case while it is read; values stay with their fields, so that a wrong reference can be shown."""

    item: Field
    problems: list[Problem] = field(default_factory=list)
    settings: Settings = field(default_factory=Settings)
    groups: list[tuple[GroupSetup, Field]] = field(default_factory=list)
    servers: list[tuple[ServerSetup, Field]] = field(default_factory=list)
    steps: list[tuple[Step, Field]] = field(default_factory=list)

    def read(self) -> Case:
        """Return the case. Refusal or ``problems`` if it has mistakes; the case is then not to be used."""
        entries = self.item.keyed(CASE_KEYS, required=("name",))
        name = entries["name"].text()
        if not name.strip():
            raise entries["name"].refusal("a case must have a name")
        project = entries["project"].text() if "project" in entries else DEFAULT_PROJECT
        with self._collecting():
            if "settings" in entries and not entries["settings"].is_null:
                self.settings = read_settings(entries["settings"])
        self._read_groups(entries)
        self._read_servers(entries)
        self._read_steps(entries)
        if not self.problems:
            self._check(project)
        return Case(
            file=self.item.file,
            line=self.item.line,
            name=name,
            project=project,
            settings=self.settings,
            groups=tuple(group for group, _ in self.groups),
            servers=tuple(server for server, _ in self.servers),
            steps=tuple(step for step, _ in self.steps),
        )

    def _read_groups(self, entries: Mapping[str, Field]) -> None:
        for name, value in self._named(entries, "groups"):
            with self._collecting():
                keys = {} if value.is_null else value.keyed(GROUP_KEYS)
                self.groups.append((read_group(ref_of(name), keys), value))

    def _read_servers(self, entries: Mapping[str, Field]) -> None:
        for name, value in self._named(entries, "servers"):
            with self._collecting():
                self.servers.append((read_server(ref_of(name), value, value.keyed(SERVER_KEYS)), value))

    def _named(self, entries: Mapping[str, Field], key: str) -> list[tuple[str, Field]]:
        named: list[tuple[str, Field]] = []
        with self._collecting():
            if key in entries:
                named = list(entries[key].entries().items())
        return named

    def _read_steps(self, entries: Mapping[str, Field]) -> None:
        with self._collecting():
            # "steps:" with nothing after it has no steps, as an empty "groups:" has no groups.
            items = entries["steps"].items() if "steps" in entries and not entries["steps"].is_null else []
            for number, item in enumerate(items, start=1):
                with self._collecting():
                    self.steps.append(_read_step(item, number))

    def _check(self, project: str) -> None:
        """Find references to what can't be there. Refusal at the first."""
        checker = Checker(project)
        for group, _ in self.groups:
            checker.meet_group(group)
        for group, value in self.groups:
            with _located(value):
                checker.check_group(group)
        for server, value in self.servers:
            with _located(value):
                checker.check_server(server)
        for step, value in self.steps:
            with _located(value):
                checker.check_step(step)

    def _collecting(self) -> AbstractContextManager[None]:
        return _collecting(self.problems, self.item.file)


@contextmanager
def _located(value: Field) -> Iterator[None]:
    try:
        yield
    except UnclearError as error:
        raise value.under(error.key).refusal(str(error)) from None


def _read_step(item: Field, number: int) -> tuple[Step, Field]:
    """Return a step and the value of its verb."""
    if not item.is_mapping:
        verb = item.choice(PLAIN)
        step = Step(number=number, line=item.line, verb=verb, action=VERBS[verb](item, ""), expected=Expectation())
        return step, item
    entries = item.keyed((*VERBS, *_STEP_KEYS))
    verbs = [key for key in entries if key in VERBS]
    if len(verbs) != 1:
        raise item.refusal(f"a step has one verb; this one has {' and '.join(verbs) or 'none'}")
    verb = verbs[0]
    expected = _read_expectation(verb, entries)
    step = Step(
        number=number,
        line=item.line,
        verb=verb,
        action=_read_action(verb, entries[verb], expected.error),
        expected=expected,
        note=entries["note"].text() if "note" in entries else "",
    )
    return step, entries[verb]


def _read_action(verb: str, value: Field, refused: str) -> Action:
    try:
        return VERBS[verb](value, refused)
    except ValueRefusal as refusal:
        if not refused:
            raise
        return Unparsable(message=f"{refusal.problem.field}: {refusal.problem.message}")


def _read_expectation(verb: str, entries: Mapping[str, Field]) -> Expectation:
    allowed: tuple[str, ...] = _TRAFFIC_KEYS if verb in TRAFFIC else _CHANGE_KEYS if verb in CHANGES else ()
    for key in (*_TRAFFIC_KEYS, *_CHANGE_KEYS):
        if key in entries and key not in allowed:
            raise entries[key].refusal(f"a step with {verb} has no {key}")
        if key in ("error_contains", "error_names") and key in entries and "error" not in entries:
            raise entries[key].refusal(f"{key} needs error")
    texts = {key: entries[key].text() for key in allowed if key in entries}
    verdict = entries["expect"].choice(("allow", "deny")) if "expect" in texts else ""
    reason = entries["reason"].choice(Reason.__members__) if "reason" in texts else ""
    if reason and verdict and Reason[reason].action.name.lower() != verdict:
        raise entries["reason"].refusal(f"{reason} is a reason to {Reason[reason].action.name.lower()}, not to {verdict}")
    return Expectation(
        verdict=verdict,
        reason=reason,
        rule=texts.get("rule", ""),
        error=entries["error"].choice(ERROR_CODES) if "error" in texts else "",
        error_contains=texts.get("error_contains", ""),
        error_names=texts.get("error_names", ""),
    )
