"""What is in force as bytes for the cache, made anew only of what has changed.

Updates that stand one after another read as one update of all (that is how protobuf merges), so each object is kept as the bytes of
an update that holds it alone: a change of one rule costs its group, and not everything there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from secgroups.agent import convert
from secgroups.agent.held import Kind, ObjectKey
from secgroups.agent.ruleset import Ruleset
from secgroups.v1 import agent_service_pb2 as pb

# Verdicts and the stream share the interpreter with the thread that saves: it steps aside after so many objects, about a
# millisecond of work, for long enough that somebody else is let in.
OBJECTS_PER_TURN = 25
TURN_S = 0.0001

ValueT = TypeVar("ValueT")


class Pieces:
    """The bytes of each object. For one thread at a time."""

    def __init__(self) -> None:
        self._made: dict[ObjectKey, tuple[object, bytes]] = {}

    def join(self, ruleset: Ruleset) -> bytes:
        """Return a serialized ``Update`` with all that is in ``ruleset``."""
        before, self._made = self._made, {}
        self._take(Kind.SET, ruleset.sets, before, lambda held: pb.Update(sets=[convert.set_message(held)]))
        self._take(Kind.GROUP, ruleset.groups, before, lambda held: pb.Update(groups=[convert.group_message(held)]))
        self._take(Kind.SERVER, ruleset.servers, before, lambda held: pb.Update(servers=[convert.server_message(held)]))
        head = pb.Update(revision=ruleset.revision).SerializeToString()
        return b"".join([head, *(data for _, data in self._made.values())])

    def _take(
        self,
        kind: Kind,
        values: Mapping[str, ValueT],
        before: dict[ObjectKey, tuple[object, bytes]],
        update_of: Callable[[ValueT], pb.Update],
    ) -> None:
        fresh = 0
        for name, value in values.items():
            made = before.get((kind, name))
            # An object that is in force is never changed, only replaced.
            if made is None or made[0] is not value:
                made = (value, update_of(value).SerializeToString())
                fresh += 1
                if not fresh % OBJECTS_PER_TURN:
                    time.sleep(TURN_S)
            self._made[kind, name] = made
