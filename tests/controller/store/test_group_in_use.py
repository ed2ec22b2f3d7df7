"""A group in use stays, and the error names who uses it: all of a few, some of many with their number."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from store_world import PROJECT, allow, commit, new_group

from secgroups.controller import operations as ops
from secgroups.controller.errors import GroupInUseError
from secgroups.controller.model import Group, GroupRemote
from secgroups.controller.store.sqlite import SqliteStore


def used_group(store: SqliteStore, servers: int, rules: int) -> Group:
    """Return a group to which servers are attached and which rules of another group name; its own rule names it as well."""
    group, other = (commit(store, new_group(name)).value for name in ("used", "other"))
    for number in range(servers):
        address = IPv4Address("10.0.0.0") + number
        commit(
            store,
            lambda tx, name=f"s{number:02}", address=address: ops.create_server(
                tx, project=PROJECT, server_id=name, addresses=[address], group_ids=[group.id]
            ),
        )
    for group_id, count in ((group.id, 1), (other.id, rules)):
        specs = [allow(port, GroupRemote(group.id)) for port in range(1, count + 1)]
        commit(
            store, lambda tx, group_id=group_id, specs=specs: ops.replace_rules(tx, project=PROJECT, group_id=group_id, specs=specs)
        )
    return group


@pytest.mark.parametrize(
    ("shown", "servers", "rules", "words"),
    [
        ((1, 0), 1, 0, ["1 server attached (s00)"]),
        ((0, 1), 0, 1, ["1 rule of other groups naming it"]),
        ((2, 2), 2, 2, ["2 servers attached (s00, s01)", "and 2 rules of other groups"]),
        ((6, 0), 6, 0, ["6 servers attached (s00, s01, s02, s03, s04 and 1 more)"]),
        ((50, 0), 60, 0, ["60 servers attached (s00, s01, s02, s03, s04 and 55 more)"]),
        ((25, 25), 60, 70, ["60 servers attached", "70 rules of other groups", "and 65 more"]),
        ((10, 40), 10, 70, ["10 servers attached", "70 rules of other groups"]),
        ((40, 10), 60, 10, ["60 servers attached", "10 rules of other groups"]),
    ],
)
def test_it_is_kept_and_its_users_are_named(
    store: SqliteStore, shown: tuple[int, int], servers: int, rules: int, words: list[str]
) -> None:
    group = used_group(store, servers, rules)
    before = store.revision
    with pytest.raises(GroupInUseError) as refused:
        commit(store, lambda tx: ops.delete_group(tx, project=PROJECT, group_id=group.id))
    kinds = [kind for kind, _ in refused.value.users]
    assert (kinds.count("server"), kinds.count("rule")) == shown
    assert len(set(refused.value.users)) == sum(shown)
    assert all(each in str(refused.value) for each in words), str(refused.value)
    assert len(str(refused.value)) < 1_000
    assert store.revision == before


def test_a_rule_of_its_own_that_names_it_does_not_hold_it(store: SqliteStore) -> None:
    group = used_group(store, 0, 0)
    commit(store, lambda tx: ops.delete_group(tx, project=PROJECT, group_id=group.id))
    assert all(each.group_id != group.id for each in store.load().rules)
