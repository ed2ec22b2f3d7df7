"""What is in force as bytes for the cache, made anew only of what has changed.

Updates that stand one after another read as one update of all (that is how protobuf merges), so each object is kept as the bytes of
an update that holds it alone: a change of one rule costs its group, and not everything there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from secgroups.agent import convert
from secgroups.agent.held import Kind, ObjectKey
from secgroups.agent.ruleset import Ruleset
from secgroups.v1 import agent_service_pb2 as pb

# Verdicts and the stream share the interpreter with the thread that saves: it steps aside after so many objects, about a
# millisecond of work, for long enough that somebody else is let in.
OBJECTS_PER_TURN = 25
TURN_S = 0.0001
# What is handed on at once: enough that hashing and writing it let others in, and not as much as all there is.
CHUNK_BYTES = 262_144

ValueT = TypeVar("ValueT")


class Pieces:
    """The bytes of each object. For one thread at a time."""

    def __init__(self) -> None:
        self._made: dict[ObjectKey, tuple[object, bytes]] = {}

    def chunks(self, ruleset: Ruleset) -> Iterator[bytes]:
        """Yield a serialized ``Update`` with all that is in ``ruleset``, in chunks of ``CHUNK_BYTES`` or one object more."""
        before, self._made = self._made, {}
        self._take(Kind.SET, ruleset.sets, before, lambda held: pb.Update(sets=[convert.set_message(held)]))
        self._take(Kind.GROUP, ruleset.groups, before, lambda held: pb.Update(groups=[convert.group_message(held)]))
        self._take(Kind.SERVER, ruleset.servers, before, lambda held: pb.Update(servers=[convert.server_message(held)]))
        chunk = [pb.Update(revision=ruleset.revision).SerializeToString()]
        chunk_bytes = 0
        for _, data in self._made.values():
            chunk.append(data)
            chunk_bytes += len(data)
            if chunk_bytes >= CHUNK_BYTES:
                yield b"".join(chunk)
                chunk.clear()
                chunk_bytes = 0
        yield b"".join(chunk)

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
