"""What is drawn for a step of a store's life: mostly what is there and may be, now and then what is not or may not."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# A rule key of the model whose remote may be the number of a group.
DrawnRule = tuple[str, int | None, tuple[int, int] | None, str | int]


def mostly(good: Any, *bad: Any) -> st.SearchStrategy[Any]:
    """Draw from ``good``, now and then from ``bad``."""
    return st.integers(0, 9).flatmap(lambda number: st.one_of(*bad) if number == 9 else good)


# One of the objects that there are, by number; one that there is not; one of the other project.
GONE, FOREIGN = 98, 99
picks = mostly(st.integers(0, 9), st.just(GONE), st.just(FOREIGN))
project_names = mostly(st.sampled_from("pppq"), st.sampled_from(["b/d", ""]))
new_names = mostly(
    st.sampled_from(["web", "db", "ops", "WEB", "lb"]), st.sampled_from(["default", "DEFAULT", "", "a/b", " web", "x" * 129])
)
descriptions = mostly(st.sampled_from(["", "a", "b"]), st.just("d" * 513))
server_ids = mostly(st.sampled_from(["s1", "s2", "s3", "s4"]), st.sampled_from(["s/3", ""]))
server_names = mostly(st.sampled_from(["", "n"]), st.just("n/"))
agents = mostly(st.sampled_from(["", "a1", "a2"]), st.just("a/2"))
address = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "2001:db8::1", "2001:db8::2"])
addresses = mostly(st.lists(address, min_size=1, max_size=2, unique=True), st.lists(address, max_size=3))
some_groups = mostly(st.lists(picks, min_size=1, max_size=2, unique=True), st.lists(picks, max_size=3))
remotes = st.sampled_from(["anywhere", "10.0.0.0/8", "::/0"]) | picks
ported = st.tuples(st.just("INGRESS"), st.sampled_from([6, 17]), st.sampled_from([None, (22, 22), (80, 90)]), remotes)
plain = st.tuples(st.sampled_from(["INGRESS", "EGRESS"]), st.sampled_from([None, 1, 47]), st.none(), remotes)
several_rules = st.dictionaries(ported | plain, st.sampled_from(["", "a"]), min_size=1, max_size=3)
repeats = mostly(st.just(False), st.just(True))
# Whether an etag is given, and whether it is that of the object as it is.
etags = mostly(st.sampled_from(["none", "present"]), st.just("stale"))
