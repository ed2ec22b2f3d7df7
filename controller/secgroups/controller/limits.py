"""How many of each there may be: defaults of the controller, and what an admin has put in their place for a project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from secgroups.controller.errors import InvalidError

LIMIT_MIN = 1
LIMIT_MAX = 1_000_000
# Agents are told a group in one message, which has to stay far below the 64 MiB that they take.
RULES_PER_GROUP_MAX = 100_000
# Projects whose limits are overridden.
OVERRIDDEN_PROJECTS_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many of each there may be; reported in the error of whoever goes beyond."""

    groups_per_project: int = 500
    rules_per_group: int = 200
    groups_per_server: int = 16
    servers_per_project: int = 20_000
    addresses_per_server: int = 32


LIMIT_NAMES = tuple(each.name for each in fields(Limits))


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOverrides:
    """What counts for a project in place of defaults: None where the default does. InvalidError beyond ``limit_max``."""

    project: str
    updated_us: int
    revision: int
    groups_per_project: int | None = None
    rules_per_group: int | None = None
    groups_per_server: int | None = None
    servers_per_project: int | None = None
    addresses_per_server: int | None = None

    def __post_init__(self) -> None:
        for name, most in self.values.items():
            check_limit_value(name, most, name)

    @property
    def values(self) -> Mapping[str, int]:
        """Those that are overridden, by name."""
        found = {name: getattr(self, name) for name in LIMIT_NAMES}
        return {name: most for name, most in found.items() if most is not None}

    def over(self, defaults: Limits) -> Limits:
        """Return what counts for the project."""
        return replace(defaults, **self.values)


def limit_max(name: str) -> int:
    """Return the largest value that a limit may have."""
    return RULES_PER_GROUP_MAX if name == "rules_per_group" else LIMIT_MAX


def check_limit_value(name: str, most: int, field: str) -> int:
    """Return the value of a limit. InvalidError for ``field`` if it is out of bounds."""
    if not LIMIT_MIN <= most <= limit_max(name):
        raise InvalidError(field, f"is {most}, {name} must be {LIMIT_MIN} to {limit_max(name)}, or left out for the default")
    return most
