"""Servers on their way from one agent to another: the old one keeps what it holds until the new one has it in force.

A server that moves on before it arrived has several old agents. What an agent does not hold it is never newly given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Move:
    """The last move of a server: to which agent, at which revision, and which agents still hold the server.

    ``old_agent_ids`` has for each of these the revision of the move that it was left with; 1 if that is not known any more.
    """

    server: str
    to_agent_id: str
    revision: int
    old_agent_ids: dict[str, int] = field(default_factory=dict)


class Moves:
    """The moves that are not complete."""

    def __init__(self) -> None:
        self._moves: dict[str, Move] = {}
        # The servers that wait for an agent, and those that an old one holds.
        self._to: dict[str, set[str]] = {}
        self._held_by: dict[str, set[str]] = {}

    def begin(self, server: str, from_agent_ids: Mapping[str, int], to_agent_id: str, revision: int) -> None:
        """Note that a server moved at ``revision``, and who holds it, each with the revision of the move that it was left with.

        What was known of an earlier move is forgotten.
        """
        self.end(server)
        old = {agent_id: left for agent_id, left in from_agent_ids.items() if agent_id != to_agent_id}
        if old:
            self._moves[server] = Move(server=server, to_agent_id=to_agent_id, revision=revision, old_agent_ids=old)
            self._to.setdefault(to_agent_id, set()).add(server)
            for agent_id in old:
                self._held_by.setdefault(agent_id, set()).add(server)

    def end(self, server: str) -> Move | None:
        """Forget a move, for whatever reason; return what it was."""
        move = self._moves.pop(server, None)
        if move is not None:
            _take_out(self._to, move.to_agent_id, server)
            for agent_id in move.old_agent_ids:
                _take_out(self._held_by, agent_id, server)
        return move

    def drop_holder(self, server: str, agent_id: str) -> None:
        """Note that an old agent does not hold the server any more."""
        move = self._moves.get(server)
        if move is not None and agent_id in move.old_agent_ids:
            del move.old_agent_ids[agent_id]
            _take_out(self._held_by, agent_id, server)
            if not move.old_agent_ids:
                self.end(server)

    def holders(self, server: str) -> frozenset[str]:
        """Return the old agents that hold a server."""
        move = self._moves.get(server)
        return frozenset(move.old_agent_ids) if move else frozenset()

    def find(self, server: str) -> Move | None:
        """Return the move of a server, if it is not complete."""
        return self._moves.get(server)

    def to(self, agent_id: str) -> list[Move]:
        """Return the moves that wait for an agent."""
        return [self._moves[server] for server in sorted(self._to[agent_id])] if agent_id in self._to else []

    def held_by(self, agent_id: str) -> list[Move]:
        """Return the moves in which an agent is an old one."""
        return [self._moves[server] for server in sorted(self._held_by[agent_id])] if agent_id in self._held_by else []


def _take_out(index: dict[str, set[str]], agent_id: str, server: str) -> None:
    servers = index[agent_id]
    servers.discard(server)
    if not servers:
        del index[agent_id]
