"""What a look may find."""

from __future__ import annotations

from dataclasses import dataclass

# Names of a finding; the rest is counted.
NAMED_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is hardly meant so. ``what`` is a constant for programs, ``advice`` says what to do."""

    what: str
    text: str
    advice: str


def some(kind: str, names: list[str]) -> str:
    """Return names as the beginning of a sentence, with its verb."""
    shown = ", ".join(names[:NAMED_MAX])
    if len(names) == 1:
        return f"{kind} {shown} is"
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return f"each of {len(names)} {kind}s ({shown}{more}) is"
