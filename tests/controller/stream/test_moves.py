"""Moves are found from every side: by their server, by the agent that waits, by the agents that hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secgroups.controller.moves import Moves

SERVERS, AGENTS = ("p/s0", "p/s1"), ("a", "b", "c")
server, agent = st.sampled_from(SERVERS), st.sampled_from(AGENTS)
step = st.one_of(
    st.tuples(st.just("begin"), server, st.dictionaries(agent, st.integers(0, 7), max_size=2), agent, st.just(7)),
    st.tuples(st.just("end"), server),
    st.tuples(st.just("drop_holder"), server, agent),
)


@given(st.lists(step))
def test_every_index_tells_of_the_same_moves(steps: list) -> None:
    moves = Moves()
    for verb, *arguments in steps:
        getattr(moves, verb)(*arguments)
        live = {name: move for name in SERVERS if (move := moves.find(name)) is not None}
        assert all(move.old_agent_ids and move.to_agent_id not in move.old_agent_ids for move in live.values())
        for name in AGENTS:
            assert [move.server for move in moves.to(name)] == [key for key in live if live[key].to_agent_id == name]
            assert [move.server for move in moves.held_by(name)] == [key for key in live if name in live[key].old_agent_ids]
        for key in SERVERS:
            assert moves.holders(key) == (live[key].old_agent_ids.keys() if key in live else frozenset())
