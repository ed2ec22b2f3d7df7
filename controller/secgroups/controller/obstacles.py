"""Why an agent does not have a revision in force, in words, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secgroups.controller.moves import Move
    from secgroups.controller.stream_messages import HeldBack, Rejected


@dataclass(frozen=True, slots=True)
class Obstacle:
    """``reason`` completes "agent a1 ...", ``detail`` may be empty, ``advice`` is an order; none ends with a full stop."""

    reason: str
    detail: str
    advice: str


def away(*, guards: bool, last_heard_us: int | None) -> Obstacle:
    """Return why an agent without a stream is late. ``last_heard_us`` is None if it has not been heard since the start."""
    if last_heard_us is None:
        detail = "never since the controller started"
    else:
        heard = datetime.fromtimestamp(last_heard_us // 1_000_000, UTC)
        detail = f"last heard of at {heard:%Y-%m-%dT%H:%M:%SZ}"
    if guards:
        advice = "start it, or look into its log; if it is gone for good, move its servers to another agent"
    else:
        advice = "make sure that it does not run: it guards no server any more, but keeps what it had until it connects"
    return Obstacle("not connected", detail, advice)


def behind(revisions: int) -> Obstacle:
    """Return why an agent with a stream is late; ``revisions`` are not in force on it, 0 if that is not known."""
    detail = f"{revisions} changes in all" if revisions > 1 else ""
    return Obstacle("not acknowledged yet", detail, "wait longer; if its lag grows, look into its log and at its machine")


def held_back(what: HeldBack) -> Obstacle:
    """Return why an agent that holds back a snapshot is late."""
    return Obstacle(
        f"holds back a snapshot that would remove {what.servers_removed} of {what.servers_held} servers",
        f"its --max-removal is {what.max_removal:g}",
        "bring the controller's data back; if the servers may go, restart the agent with a larger --max-removal",
    )


def rejected(what: Rejected) -> Obstacle:
    """Return why an agent that rejected an object is late."""
    kind, key = what.key
    return Obstacle(
        f"rejected {kind.word} {key} at version {what.version}: {what.message}",
        "its last good version stays in force",
        "bring the agent to the controller's version, or change what it rejects",
    )


def moving(what: Move) -> Obstacle:
    """Return why the old agent of a server on the move is late."""
    reason = f"still guards {what.server} until {what.to_agent_id} has it in force"
    return Obstacle(reason, "", f"see to {what.to_agent_id}, which has not taken it")
