"""Who needs what: begun with everything at once it is the same as grown a change at a time, and goes on in the same way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secgroups.controller.interest import Interest
from secgroups.controller.stream_messages import Kind, ObjectKey

AGENTS, SERVERS, GROUPS = ("a", "b"), ("s0", "s1", "s2"), ("g0", "g1", "g2", "g3")
KEYS: list[ObjectKey] = [
    *((Kind.SERVER, name) for name in SERVERS),
    *((kind, name) for kind in (Kind.GROUP, Kind.SET) for name in GROUPS),
]

groups = st.lists(st.sampled_from(GROUPS), min_size=1, unique=True).map(tuple)
naming = st.lists(st.tuples(st.sampled_from(GROUPS), st.sampled_from(GROUPS)))
# A server has the same groups on every agent that holds it.
placing = st.dictionaries(st.sampled_from(SERVERS), st.tuples(groups, st.sets(st.sampled_from(AGENTS))))


@given(naming, placing)
def test_begun_with_everything_it_is_what_it_would_have_become(named: list, placed: dict) -> None:
    entries = [(agent, server, group_ids) for server, (group_ids, agents) in placed.items() for agent in sorted(agents)]
    begun, grown = Interest(), Interest()
    begun.begin(named, entries)
    for group_id, remote in named:
        grown.name_remote(group_id, remote)
    for agent, server, group_ids in entries:
        grown.place(agent, server, group_ids)
    check_equal(begun, grown)
    # Every way out, one by one: the counts are the same too.
    for agent, server, _ in entries:
        assert sorted(begun.displace(agent, server)) == sorted(grown.displace(agent, server))
        check_equal(begun, grown)
    for group_id, remote in named:
        assert begun.unname_remote(group_id, remote) == grown.unname_remote(group_id, remote)
    check_equal(begun, Interest())


steps = st.lists(
    st.one_of(
        st.tuples(st.just("place"), st.sampled_from(AGENTS), st.sampled_from(SERVERS), groups),
        st.tuples(st.just("displace"), st.sampled_from(AGENTS), st.sampled_from(SERVERS)),
        st.tuples(st.sampled_from(["name_remote", "unname_remote"]), st.sampled_from(GROUPS), st.sampled_from(GROUPS)),
    )
)


@given(naming, placing, steps)
def test_what_a_change_answers_does_not_depend_on_who_has_asked_before(named: list, placed: dict, changes: list) -> None:
    entries = [(agent, server, group_ids) for server, (group_ids, agents) in placed.items() for agent in sorted(agents)]
    asked, unasked = Interest(), Interest()
    for interest in (asked, unasked):
        interest.begin(named, entries)
    rules = list(named)
    for name, *values in changes:
        if name == "unname_remote":
            if tuple(values) not in rules:
                continue
            rules.remove(tuple(values))
        elif name == "name_remote":
            rules.append(tuple(values))
        before = wanted_sets(unasked)
        for remote in GROUPS:
            asked.agents_of((Kind.SET, remote))
        marks = getattr(unasked, name)(*values)
        assert sorted(marks, key=str) == sorted(getattr(asked, name)(*values), key=str)
        moved = {(agent, key[1]) for agents, key in marks if key[0] is Kind.SET for agent in agents}
        assert moved == before ^ wanted_sets(unasked)
    check_equal(asked, unasked)


def wanted_sets(interest: Interest) -> set[tuple[str, str]]:
    """Return agents with their address sets, without asking who needs which."""
    return {(agent, name) for agent in AGENTS for kind, name in interest.span(agent) if kind is Kind.SET}


def check_equal(one: Interest, other: Interest) -> None:
    assert sorted(one.agents()) == sorted(other.agents())
    for key in KEYS:
        assert sorted(one.agents_of(key)) == sorted(other.agents_of(key))
    for agent in AGENTS:
        assert sorted(one.span(agent)) == sorted(other.span(agent))
        assert [one.wants(agent, key) for key in KEYS] == [other.wants(agent, key) for key in KEYS]
