"""Randomness from a seed for everything that asks the system for it, and an ear for what the programs log.

For a process that does nothing else: what is set here is the interpreter's own.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import MutableMapping
from typing import Any

import structlog

# Ids and numbers.
_PARTICULARS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\S+/\S+|\d+")
# Logged only if a bug was survived.
BUGS = frozenset({"commit_failed", "outcome_failed", "listener_failed"})


def seed_everything(seed: int) -> None:
    """Make ids, UUIDs and jitter functions of ``seed``. The order of sets needs PYTHONHASHSEED besides."""
    source = random.Random(f"entropy {seed}")
    os.urandom = source.randbytes  # type: ignore[assignment]
    random._urandom = source.randbytes  # type: ignore[attr-defined]
    random.seed(seed)


class LogEar:
    """Takes what is logged: counts it by event, and keeps what tells of a bug."""

    def __init__(self, shown: bool) -> None:
        self.counts: dict[str, int] = {}
        self.bugs: list[str] = []
        # How streams began, and why no better.
        self.reasons: Counter[str] = Counter()
        self._shown = shown

    def listen(self) -> None:
        """Hear everything from now on."""
        structlog.configure(processors=[self._hear], cache_logger_on_first_use=False)

    def _hear(self, logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        name = event["event"]
        self.counts[name] = self.counts.get(name, 0) + 1
        if name == "agent_welcomed":
            self.reasons[f"welcome {event['mode'].lower()} {_PARTICULARS.sub('N', event['reason'])}".strip()] += 1
        if name in BUGS:
            self.bugs.append(f"{name}: {event}")
        if self._shown:
            print("      log", method, dict(event))
        raise structlog.DropEvent
