"""What holds whatever happens: random rules, packets, changes and times, checked against the simplest matching of rules."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from agent_world import (
    ACK,
    ANY_EGRESS,
    ANY_INGRESS,
    CLIENT,
    CLIENT6,
    DB,
    EGRESS,
    FIN_ACK,
    INGRESS,
    OTHER,
    RST,
    SYN,
    SYN_ACK,
    WEB,
    World,
    error_about,
    packet,
    reply,
    rule,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, run_state_machine_as_test
from hypothesis.stateful import rule as step

from secgroups.agent.firewall import ENGINES
from secgroups.agent.flow import ICMP, ICMPV6, SCTP, TCP, UDP, Fragment
from secgroups.agent.ruleset import AddressSet, GroupRules, RulesetUpdate, ServerBinding

MINE, WEB4 = "10.0.0.9", "10.0.0.5"
GROUPS = ("db", "web", "more")

rules_st = st.builds(
    lambda number, direction, covered, remote: rule(f"r{number:02}", direction, *covered, remote),
    st.integers(0, 30),
    st.sampled_from([INGRESS, EGRESS]),
    st.sampled_from(
        [(None, None), (TCP, None), (TCP, 22), (TCP, (20, 1001)), (UDP, 53), (UDP, (1, 1000)), (ICMP, None), (47, None)]
    ),
    st.sampled_from([None, "0.0.0.0/0", "::/0", "203.0.113.0/24", "198.51.100.1/32", "group:web", "group:more"]),
)


def distinct(rules):
    return tuple({made.id: made for made in rules}.values())


def group_rules(group_id, rules, version=1):
    """Return the rules of a group; ids are unique over all groups, as those of the controller are."""
    made = tuple(replace(each, id=f"{each.id}-{group_id}") for each in distinct(rules))
    return GroupRules(group_id=group_id, version=version, name=group_id, rules=made)


groups_st = st.fixed_dictionaries({group_id: st.lists(rules_st, max_size=4) for group_id in GROUPS})
members_st = st.sets(st.sampled_from([CLIENT, OTHER, CLIENT6, WEB4, MINE]), max_size=3)

remotes_st = st.sampled_from([CLIENT, OTHER, CLIENT6])
flags_st = st.sampled_from([SYN, SYN_ACK, ACK, ACK, FIN_ACK, RST])


def plain(remote, server, direction, what, ports):
    """Return a packet between ``remote`` and the server's address of its family."""
    protocol, fields = what
    ends = (remote, own(server, remote)) if direction is INGRESS else (own(server, remote), remote)
    return packet(*ends, protocol, at=server, direction=direction, source_port=ports[0], destination_port=ports[1], **fields)


plain_st = st.builds(
    plain,
    remotes_st,
    st.sampled_from([DB, DB, WEB]),
    st.sampled_from([INGRESS, EGRESS]),
    st.one_of(
        st.builds(lambda flags: (TCP, {"tcp_flags": flags}), st.sampled_from([SYN, SYN, SYN_ACK, ACK, ACK, FIN_ACK, RST, 0])),
        st.sampled_from([(UDP, {}), (UDP, {}), (47, {}), (SCTP, {})]),
        st.builds(lambda kind: (ICMP, {"icmp_type": kind}), st.sampled_from([8, 0, 13, 14, 128, 3, 9])),
    ),
    st.sampled_from([(1000, 22), (22, 1000), (1000, 53), (53, 1000), (0, 53)]),
)


def own(server, remote):
    number = 9 if server == DB else 5
    return f"2001:db8::{number}" if ":" in remote else f"10.0.0.{number}"


def fitting(made):
    """Return ``made`` with the ICMP of its family."""
    if made.protocol == ICMP and made.source.version == 6:
        types = {8: 128, 0: 129, 13: 139, 14: 140, 3: 1}
        return replace(made, protocol=ICMPV6, icmp_type=types.get(made.icmp_type, 200))
    return made


packets_st = st.builds(
    lambda made, fragment, number: replace(fitting(made), fragment=fragment, fragment_id=number),
    plain_st,
    st.sampled_from([Fragment.NONE] * 6 + [Fragment.FIRST, Fragment.LATER]),
    st.integers(0, 2),
)


def covers(ruleset, made, direction, remote, protocol, port, icmp_type, icmp_code):
    """Whether a rule allows an opening packet: the contract once more, without the engine's code."""
    if made.direction is not direction:
        return False
    if made.protocol not in (None, protocol) and not (made.protocol == ICMP and protocol == ICMPV6):
        return False
    if made.ports and not (protocol in (TCP, UDP, SCTP) and made.ports[0] <= port <= made.ports[1]):
        return False
    if made.icmp_type is not None and (protocol not in (ICMP, ICMPV6) or made.icmp_type != icmp_type):
        return False
    if made.icmp_code is not None and made.icmp_code != icmp_code:
        return False
    if isinstance(made.remote, str):
        return made.remote in ruleset.sets and remote in ruleset.sets[made.remote].members
    return made.remote is None or (made.remote.version == remote.version and remote in made.remote)


def lowest_rule(ruleset, server, *opening):
    """Return the id of the rule that should be named for an opening packet, empty if none allows it."""
    held = [each for group_id in ruleset.servers[server].group_ids for each in ruleset.groups[group_id].rules]
    return min((each.id for each in held if covers(ruleset, each, *opening)), default="")


def opening_of(made):
    port = made.destination_port if made.protocol in (TCP, UDP, SCTP) else 0
    return (made.direction, made.remote, made.protocol, port, made.icmp_type, made.icmp_code)


def opening_of_flow(flow):
    opening = flow.opening
    return (opening.direction, opening.remote, opening.protocol, opening.port, opening.icmp_type, opening.icmp_code)


class Life(RuleBasedStateMachine):
    """An agent with two servers, whose rules, members, addresses and bindings change while packets come and go."""

    engine = "reference"

    def __init__(self):
        super().__init__()
        self.world = World(self.engine, ANY_EGRESS, ANY_INGRESS, flows_max=8, server_flows_max=6, fragments_max=4, tcp_loose_s=20)
        self.world.apply(
            groups=(group_rules("web", []), group_rules("more", [])),
            servers=(self.world.binding(WEB, "db"),),
        )
        self.opened = []

    def check(self, asked):
        """Judge a packet and hold the verdict against what the rules in force say."""
        world, ruleset = self.world, self.world.firewall.ruleset
        verdict = world.decide(asked)  # checks that explain agrees
        name = verdict.reason.name
        if verdict.opened:
            self.opened = [*self.opened[-10:], asked]
        if asked.server not in ruleset.servers:
            assert name == "UNKNOWN_SERVER"
        elif asked.fragment is not Fragment.LATER:
            allowed_by = lowest_rule(ruleset, asked.server, *opening_of(asked))
            picked_up = asked.protocol == TCP and asked.tcp_flags == ACK
            if name in {"NEW", "TABLE_FULL"} and picked_up:
                allowed_by = allowed_by or lowest_rule(ruleset, asked.server, *opening_of(reply(asked)))
            if name in {"NEW", "TABLE_FULL"}:
                assert allowed_by
            if name == "NEW":
                assert verdict.rule_id == allowed_by
            if name == "NO_RULE":
                assert not allowed_by
            if name in {"ESTABLISHED", "REVOKED"}:
                self.check_flow(asked, verdict)
        return name

    def check_flow(self, asked, verdict):
        """A flow passes if and only if its opening packet is allowed now, and by the rule named."""
        ends = {(asked.local, asked.remote, asked.protocol)}
        flows = [
            flow
            for flow in self.world.firewall.flows.live(self.world.now_ns)
            if flow.key.server == asked.server and (flow.key.local, flow.key.remote, flow.key.protocol) in ends
        ]
        allowed = {lowest_rule(self.world.firewall.ruleset, asked.server, *opening_of_flow(flow)) for flow in flows}
        if verdict.reason.name == "ESTABLISHED":
            assert verdict.rule_id in allowed
        else:
            assert any(flow.revoked for flow in flows)
            assert "" in allowed

    @step(asked=st.lists(packets_st, min_size=1, max_size=5))
    def send(self, asked):
        for each in asked:
            self.check(each)

    @step(opening=plain_st)
    def converse(self, opening):
        """Open a flow, answer, and go on."""
        opening = replace(fitting(opening), tcp_flags=SYN if opening.protocol == TCP else 0)
        answered = reply(opening, tcp_flags=SYN_ACK if opening.protocol == TCP else 0)
        for asked in (opening, answered, replace(opening, tcp_flags=ACK if opening.protocol == TCP else 0)):
            self.check(asked)

    @precondition(lambda self: self.opened)
    @step(said=st.lists(st.tuples(st.integers(0, 10), flags_st, st.booleans()), min_size=1, max_size=8))
    def go_on(self, said):
        """Packets of flows that were opened at some time."""
        for number, flags, back in said:
            opening = self.opened[number % len(self.opened)]
            asked = replace(opening, tcp_flags=flags if opening.protocol == TCP else 0)
            self.check(reply(asked) if back else asked)

    @precondition(lambda self: self.opened)
    @step(number=st.integers(0, 10), back=st.booleans())
    def complain(self, number, back):
        """An ICMP error about a flow, or about its answer."""
        asked = self.opened[number % len(self.opened)]
        asked = reply(asked) if back else asked
        source = "192.0.2.1" if asked.source.version == 4 else "2001:db8:f::1"
        self.check(error_about(asked, source=source if asked.direction is EGRESS else str(asked.destination)))

    @step(seconds=st.sampled_from([0.5, 9, 29, 31, 119, 299, 301]))
    def wait(self, seconds):
        self.world.advance(seconds)

    @step(
        change=st.one_of(
            st.tuples(st.just("rules"), st.sampled_from(GROUPS), st.lists(rules_st, max_size=4)),
            st.tuples(st.just("members"), st.sampled_from(["web", "more"]), members_st),
            st.tuples(st.just("attach"), st.sampled_from([DB, WEB]), st.sets(st.sampled_from(GROUPS), min_size=1)),
            st.tuples(st.just("addresses"), st.just(DB), st.sampled_from([(MINE,), None])),
            st.tuples(st.just("remove"), st.just(WEB), st.none()),
            st.tuples(st.just("restart"), st.none(), st.none()),
            st.tuples(st.just("restore"), st.none(), st.none()),
        )
    )
    def change(self, change):
        world = self.world
        what, name, value = change
        if what == "rules":
            world.apply(groups=(group_rules(name, value),))
        elif what == "members":
            world.apply(sets=(world.members(name, *value),))
        elif what == "attach":
            world.bind(name, *value)
        elif what == "addresses":
            world.bind(name, "db", addresses=value)
        elif what == "remove":
            world.apply(removed_servers=(name,))
        elif what == "restart":
            world.restart(warm=True)
        else:
            world.apply(
                groups=(world.group("db", ANY_EGRESS, ANY_INGRESS),), servers=(world.binding(DB, "db"), world.binding(WEB, "db"))
            )

    @invariant()
    def nothing_is_without_a_bound(self):
        table = self.world.firewall.flows
        assert len(table) <= 8
        assert sum(1 for _ in table.live(self.world.now_ns)) <= len(table)
        assert table.held_by(DB) + table.held_by(WEB) == len(table)
        assert max(table.held_by(DB), table.held_by(WEB)) <= 6
        assert self.world.firewall.stats(self.world.now_ns).fragments <= 4
        held = {each.id for group in self.world.firewall.ruleset.groups.values() for each in group.rules}
        assert set(self.world.firewall.rule_counts()) <= held

    @invariant()
    def every_flow_is_on_an_address_of_a_guarded_server(self):
        servers = self.world.firewall.ruleset.servers
        for flow in self.world.firewall.flows.live(self.world.now_ns):
            assert flow.key.local in servers[flow.key.server].addresses


def test_any_life_of_an_agent_keeps_the_contract(engine):
    machine = type("LifeOf", (Life,), {"engine": engine})
    run_state_machine_as_test(machine, settings=settings(max_examples=150, stateful_step_count=50, deadline=None))


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=100, deadline=None)
@given(packets=st.lists(packets_st, max_size=20))
def test_without_rules_nothing_but_essential_services_passes(engine, packets):
    world = World(engine)
    world.bind(WEB, "db")
    for asked in packets:
        assert world.decide(asked).action.name == "DENY"
    assert world.firewall.stats(world.now_ns).entries == 0


def objects_of(groups, members, bindings):
    return (
        [("groups", group_rules(group_id, rules)) for group_id, rules in groups.items()]
        + [
            ("sets", AddressSet(group_id=group_id, version=1, members=frozenset(map(ip_address, found))))
            for group_id, found in members.items()
        ]
        + [
            ("servers", ServerBinding(server=server, version=1, addresses=addresses, group_ids=tuple(group_ids)))
            for server, (addresses, group_ids) in bindings.items()
        ]
    )


def as_update(objects, *, snapshot=False):
    fields = {kind: tuple(made for each, made in objects if each == kind) for kind in ("groups", "sets", "servers")}
    return RulesetUpdate(revision=1, snapshot=snapshot, **fields)


ADDRESSES_OF = {
    DB: frozenset({ip_address(MINE), ip_address("2001:db8::9")}),
    WEB: frozenset({ip_address(WEB4), ip_address("2001:db8::5")}),
}
state_st = st.builds(
    objects_of,
    groups_st,
    st.fixed_dictionaries({"web": members_st, "more": members_st}),
    st.fixed_dictionaries(
        {
            server: st.tuples(st.just(addresses), st.lists(st.sampled_from(GROUPS), min_size=1, max_size=2))
            for server, addresses in ADDRESSES_OF.items()
        }
    ),
)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), final=state_st, history=st.lists(state_st, max_size=2), packets=st.lists(packets_st, max_size=15))
def test_the_state_decides_and_not_the_way_to_it(engine, data, final, history, packets):
    shuffled = data.draw(st.permutations(final))
    at_once = World(engine, ANY_INGRESS)
    at_once.firewall.apply(as_update(final, snapshot=True), at_once.now_ns)
    one_by_one = World(engine, ANY_EGRESS)
    for objects in (*history, shuffled, list(reversed(shuffled))):  # the last state forwards and then backwards: all of it twice
        for each in objects:
            one_by_one.firewall.apply(as_update([each]), one_by_one.now_ns)
    for asked in packets:
        assert one_by_one.decide(asked) == at_once.decide(asked)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=60, deadline=None)
@given(
    flows_max=st.integers(4, 12),
    server_flows_max=st.integers(4, 12),
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.booleans(), st.sampled_from([0, 0, 1, 20])), max_size=80),
)
def test_no_flood_exceeds_a_bound_and_the_small_always_find_room(engine, flows_max, server_flows_max, events):
    world = World(engine, ANY_INGRESS, flows_max=flows_max, server_flows_max=server_flows_max)
    servers = [f"p/{number}" for number in range(3)]
    for number, server in enumerate(servers):
        world.bind(server, "db", addresses=(f"10.0.1.{number}",))
    table = world.firewall.flows
    for number, port, answered, wait_s in events:
        world.advance(wait_s)
        server = servers[number % 3]
        held = table.held_by(server)
        asked = packet(CLIENT, f"10.0.1.{number % 3}", UDP, at=server, direction=INGRESS, source_port=port, destination_port=53)
        verdict = world.decide(asked)
        if held * 4 < flows_max and held < server_flows_max:
            assert verdict.reason.name in {"NEW", "ESTABLISHED"}
        if answered and verdict.action.name == "ALLOW":
            assert world.decide(reply(asked)).reason.name == "ESTABLISHED"
        assert len(table) <= flows_max
        assert max(table.held_by(each) for each in servers) <= server_flows_max


CHANGES = [
    rule("s-other", EGRESS, UDP, 1),
    rule("s-more", INGRESS, TCP, 22, "198.51.100.0/24"),
    rule("a-first", INGRESS, TCP, (20, 25)),
]


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=60, deadline=None)
@given(
    changes=st.lists(st.tuples(st.sets(st.sampled_from(range(3))), st.booleans(), st.sampled_from([0, 50, 400])), max_size=12),
    networks=st.sampled_from(["203.0.113.0/24", "203.0.113.7/32", "0.0.0.0/0"]),
)
def test_changes_that_leave_a_flow_allowed_lose_no_packet_of_it(engine, changes, networks):
    keep = replace(rule("s-keep", INGRESS, TCP, 22), remote=ip_network(networks))
    world = World(engine, keep)
    opening = packet(CLIENT, MINE, TCP, source_port=1000, destination_port=22, tcp_flags=SYN)
    world.connect(opening)
    for chosen, silent, wait_s in changes:
        world.set_rules(keep, *(CHANGES[number] for number in chosen))
        world.advance(wait_s)
        if not silent:
            expected = "a-first" if 2 in chosen else "s-keep"
            for asked in (replace(opening, tcp_flags=ACK), reply(opening, tcp_flags=ACK)):
                verdict = world.decide(asked)
                assert (verdict.reason.name, verdict.rule_id) == ("ESTABLISHED", expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("answered", [False, True])
@settings(max_examples=40, deadline=None)
@given(asks=st.lists(st.tuples(st.booleans(), st.sampled_from([0, 1, 100, 299])), max_size=20))
def test_no_packet_of_a_revoked_connection_passes_while_it_is_held(engine, answered, asks):
    world = World(engine, rule("in", INGRESS, TCP, 22), ANY_EGRESS)
    opening = packet(CLIENT, MINE, TCP, source_port=1000, destination_port=22, tcp_flags=SYN)
    if answered:
        world.connect(opening)
    else:
        world.decide(opening)
    world.set_rules(ANY_EGRESS)
    for from_client, wait_s in asks:
        world.advance(wait_s)
        asked = replace(opening, tcp_flags=ACK) if from_client else reply(opening, tcp_flags=ACK)
        assert world.reason(asked).name in {"REVOKED", "INVALID_STATE"}
