"""Versions that are held, while steps begin, end and are given up half way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from secgroups.agent.held import HeldVersions, Kind, ObjectKey

key = st.tuples(st.sampled_from(Kind), st.sampled_from(("x", "y", "z")))
edits = st.lists(st.tuples(key, st.none() | st.integers(1, 3)))


def check(held: HeldVersions, expected: dict[ObjectKey, int]) -> None:
    assert dict(held) == expected
    assert len(list(held)) == len(held) == len(expected)
    assert all((each in held) == (each in expected) for each in [(kind, name) for kind in Kind for name in "xyz"])
    assert held.digest == HeldVersions(expected).digest


@given(edits, st.lists(st.tuples(edits, st.booleans())))
def test_a_step_changes_what_is_held_when_it_ends_and_nothing_before(first: list, steps: list) -> None:
    expected = {each: version for each, version in first if version is not None}
    held = HeldVersions(expected)
    for changes, ends in steps:
        step, after = held.copy(), dict(expected)
        for each, version in changes:
            if version is None:
                step.drop(each)
                after.pop(each, None)
            else:
                step.put(each, version)
                after[each] = version
            check(step, after)
            check(held, expected)
        if ends:
            held, expected = step, after
