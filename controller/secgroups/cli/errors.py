"""What can go wrong in sgctl. Each becomes one ``error:`` line, its details below it, and an exit status; never a traceback.

    CliError                 exit 2
    ├── NotFoundError        no object has that name, id or abbreviation
    ├── AmbiguousError       several have; the message lists their ids
    ├── InputError           a file is wrong; one detail for each mistake, with its line and field
    ├── CallError            a call was refused; has the gRPC code
    │   └── UnreachableError nobody answers at the address
    ├── PartialError         a command of several changes stopped midway; the details say what was done and what was not
    └── LaggingError         exit 3: the change is made but not in force everywhere in time

FieldError is raised by values that are none; who reads a file or an option turns it into one of the above.
"""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_CHARACTERS_MAX = 64


def shown(text: str) -> str:
    """Return a value for a message, in quotes, what is long shortened."""
    return repr(text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[: SHOWN_CHARACTERS_MAX - 3]}...")


class CliError(Exception):
    """The command failed; ``details`` are further lines, without indentation."""

    exit_code = 2

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)


class NotFoundError(CliError):
    """Nothing is called that."""


class AmbiguousError(CliError):
    """Several things are called that."""


class InputError(CliError):
    """A file can't be read or says something that is not allowed."""


class CallError(CliError):
    """A call was refused; ``code`` is the name of its gRPC status, for example ``NOT_FOUND``."""

    def __init__(self, code: str, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message, details)
        self.code = code


class UnreachableError(CallError):
    """Nobody answers, or who answers can't serve now. Worth another try."""


class PartialError(CliError):
    """Some of several changes were made before one failed."""


class LaggingError(CliError):
    """The change is committed, but some agent does not enforce it yet."""

    exit_code = 3


class FieldError(ValueError):
    """A value is not allowed; ``field`` is its key (dotted where it is nested)."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message
