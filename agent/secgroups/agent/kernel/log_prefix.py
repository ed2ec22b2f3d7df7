"""By what a logged packet is known: the prefix that our log statements give it. People may read it with other programs."""

from __future__ import annotations

from enum import Enum

from secgroups.agent.flow import Direction, Reason


class Way(Enum):
    """How a packet stands to its connection: of the opener or of none, of the answerer, or certainly of none."""

    OPENER = ""
    REPLY = " reply"
    ALONE = " alone"


def log_prefix(direction: Direction, reason: Reason, way: Way = Way.OPENER) -> str:
    """Return the prefix that says what the rules of ``direction`` made of a packet."""
    return f"secgroups {direction.name.lower()} {reason.name.lower()}{way.value}"
