"""Errors of the controller, one class for each thing that a caller can do differently.

ControllerError
├── RequestError                 refused before anything was written; the caller can act on it
│   ├── InvalidError             INVALID_ARGUMENT: correct the named fields
│   ├── NotFoundError            NOT_FOUND: no such object in this project
│   ├── AlreadyExistsError       ALREADY_EXISTS: use the object that is there
│   ├── PreconditionError        FAILED_PRECONDITION: change something else first
│   │   ├── LastGroupError           a server must keep one group: attach another first, or delete the server
│   │   ├── GroupInUseError          detach the servers and delete the rules that are named
│   │   └── DefaultGroupError        the default group stays: change its rules instead
│   ├── UnauthenticatedError     UNAUTHENTICATED: send a token that is valid
│   ├── PermissionDeniedError    PERMISSION_DENIED: ask somebody with another role
│   ├── LimitError               RESOURCE_EXHAUSTED: delete something or raise the limit
│   │   └── OverloadError            one caller asks for too much at one time: try again when it says
│   └── StaleEtagError           ABORTED: read the object again
├── StoreUnavailableError        UNAVAILABLE: the store can't be written now; try again
└── StartError                   the controller can't start; one line says why
    ├── ConfigError              correct the setting
    └── StoreFileError           the database file is damaged, newer than the program, or not ours
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar


class ControllerError(Exception):
    """Root of everything that the controller raises on purpose. ``code`` is the name of a gRPC status code."""

    code: ClassVar[str] = "INTERNAL"


class RequestError(ControllerError):
    """A request that was refused before anything was written. ``reason`` is a constant in UPPER_SNAKE_CASE for programs."""

    reason: ClassVar[str] = "REFUSED"


@dataclass(frozen=True, slots=True)
class Violation:
    """A field of a request, as a path such as ``rules[3].ports.first``, and what is wrong with it."""

    field: str
    message: str


class InvalidError(RequestError):
    """Values that are none. Holds every violation that was found, in order."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_VALUE"

    def __init__(self, field: str, message: str, more: Sequence[Violation] = ()) -> None:
        self.violations: tuple[Violation, ...] = (Violation(field, message), *more)
        super().__init__("; ".join(f"{violation.field}: {violation.message}" for violation in self.violations))

    @classmethod
    def of(cls, violations: Sequence[Violation]) -> InvalidError:
        """Make the error from one violation or more."""
        first, *more = violations
        return cls(first.field, first.message, more)

    def within(self, path: str) -> InvalidError:
        """Return the same error for fields that lie within ``path``, for example ``rules[3]``."""
        return InvalidError.of([Violation(f"{path}.{old.field}" if old.field else path, old.message) for old in self.violations])


class NotFoundError(RequestError):
    """There is no such object, or it is another project's."""

    code = "NOT_FOUND"
    reason = "NO_SUCH_OBJECT"

    def __init__(self, kind: str, key: str, *, message: str = "") -> None:
        super().__init__(message or f"there is no {kind} {key} in this project")
        self.kind = kind
        self.key = key


class AlreadyExistsError(RequestError):
    """The object ``kind`` ``key`` stands in the way. ``row`` is the index in a bulk call, or None."""

    code = "ALREADY_EXISTS"
    reason = "OBJECT_EXISTS"

    def __init__(self, kind: str, key: str, message: str, *, row: int | None = None) -> None:
        super().__init__(message if row is None else f"rules[{row}]: {message}")
        self.kind = kind
        self.key = key
        self.row = row


class PreconditionError(RequestError):
    """Something else has to change first. ``subject`` is what was to change, ``users`` are the ids that stand against it."""

    code = "FAILED_PRECONDITION"
    reason = "PRECONDITION"

    def __init__(self, subject: str, message: str, users: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.subject = subject
        self.users: tuple[tuple[str, str], ...] = tuple(users)


class LastGroupError(PreconditionError):
    """A server would be left without a group."""

    reason = "LAST_GROUP"


class GroupInUseError(PreconditionError):
    """Servers are attached to the group or rules of other groups name it: ``users`` holds ("server" | "rule", id)."""

    reason = "GROUP_IN_USE"


class DefaultGroupError(PreconditionError):
    """The default group can't be deleted or renamed."""

    reason = "DEFAULT_GROUP"


class UnauthenticatedError(RequestError):
    """Nobody knows who calls."""

    code = "UNAUTHENTICATED"
    reason = "NO_VALID_CREDENTIALS"


class PermissionDeniedError(RequestError):
    """Whoever calls is known, and may not do this."""

    code = "PERMISSION_DENIED"
    reason = "ROLE_TOO_LOW"


class LimitError(RequestError):
    """A limit is reached. ``subject`` is what is full, ``limit`` the setting's name, ``most`` its value."""

    code = "RESOURCE_EXHAUSTED"
    reason = "LIMIT_REACHED"

    def __init__(self, subject: str, message: str, *, limit: str, most: int) -> None:
        super().__init__(message)
        self.subject = subject
        self.limit = limit
        self.most = most


class OverloadError(LimitError):
    """One caller asks for more than it may at one time; in ``retry_after_s`` there may be room again."""

    reason = "TOO_MUCH_AT_ONCE"

    def __init__(self, subject: str, message: str, *, limit: str, most: int, retry_after_s: float) -> None:
        super().__init__(subject, message, limit=limit, most=most)
        self.retry_after_s = retry_after_s


class StaleEtagError(RequestError):
    """The object changed since the caller read it."""

    code = "ABORTED"
    reason = "STALE_ETAG"

    def __init__(self, kind: str, key: str, *, given: str, present: str) -> None:
        super().__init__(f"{kind} {key} has changed: etag is {present}, given was {given}; read it again")
        self.kind = kind
        self.key = key


class StoreUnavailableError(ControllerError):
    """The store can't be written now, or the controller is stopping; nothing was changed. Try again in ``retry_after_s``."""

    code = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StartError(ControllerError):
    """The controller can't start; the message is one line for the operator."""


class ConfigError(StartError):
    """A setting that can't work; the message names it, its value and the bound."""


class StoreFileError(StartError):
    """The database file can't be used; the message names the file and why."""
