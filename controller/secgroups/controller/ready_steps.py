"""Steps that many agents take, made once: what leads from the versions that an agent was sent of some objects to the newest.

A change for thousands of agents finds nearly all of them with the same objects marked and the same versions of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secgroups.controller.chunks import Chunk
from secgroups.controller.stream_messages import ObjectKey

# Larger ones are hardly ever alike.
KEYS_MAX = 16
STEP_BYTES_MAX = 64 << 10
STEPS_MAX = 256

# Objects in the order in which they were marked, and the version that was sent of each.
Start = tuple[tuple[ObjectKey, ...], tuple[int | None, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyStep:
    """A step of one message about objects that its agents need: ``keys`` are those that are sent, ``versions`` is held then."""

    versions: Mapping[ObjectKey, int]
    keys: set[ObjectKey]
    chunk: Chunk


class ReadySteps:
    """The steps that were made since the last change."""

    def __init__(self) -> None:
        self._revision = 0
        self._steps: dict[Start, ReadyStep] = {}

    def find(self, start: Start, revision: int) -> ReadyStep | None:
        """Return the step that leads to ``revision``, which is the newest, if one was kept."""
        return self._steps.get(start) if self._revision == revision else None

    def keep(self, start: Start, revision: int, step: ReadyStep) -> None:
        """Keep a step for the next agent, until the revision is not the newest any more. Nothing of it changes any more."""
        if step.chunk.size_bytes > STEP_BYTES_MAX:
            return
        if self._revision != revision or len(self._steps) >= STEPS_MAX:
            self._steps.clear()
            self._revision = revision
        self._steps[start] = step
