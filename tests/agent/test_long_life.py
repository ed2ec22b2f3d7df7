"""What an agent meets after weeks: counters that come to their end, and numbers that mean something else while somebody looks."""

from __future__ import annotations

from agent_world import ANY_EGRESS, DB, DNS, INGRESS, SSH, UDP, WEB, World, reply, rule, tcp, udp

CLIENT, MINE = "203.0.113.7", "10.0.0.9"
LAST_EPOCH = 0xFFFF_FFFF


def test_a_server_whose_epochs_are_used_up_begins_again() -> None:
    world = World("compiled", DNS, SSH)
    world.firewall.flows.guards[DB].epoch = LAST_EPOCH - 1
    query = udp(CLIENT, MINE, 53)
    for rules, reason in ((DNS,), "NEW"), ((SSH,), "REVOKED"), ((DNS,), "ESTABLISHED"), ((SSH,), "REVOKED"):
        world.set_rules(*rules)
        assert world.reason(query).name == reason
    assert 0 < world.firewall.flows.guards[DB].epoch < LAST_EPOCH


def test_changes_of_other_servers_do_not_use_up_epochs() -> None:
    world = World("compiled", DNS)
    for number in range(10):
        world.bind(WEB, "db", addresses=(f"10.0.0.{10 + number}",))
    assert world.firewall.flows.guards[DB].epoch == 1


def test_rules_come_and_go_while_flows_name_many_that_are_gone() -> None:
    named = 50
    world = World("compiled", *(rule(f"x{port:05}", INGRESS, UDP, port) for port in range(1_000, 1_000 + named)))
    for port in range(1_000, 1_000 + named):
        assert world.decide(udp(CLIENT, MINE, port)).opened
    for turn in range(500):
        world.set_rules(rule(f"y{turn:05}", INGRESS, UDP, 53))
    numbers = world.firewall.flows.numbers
    assert named < len(numbers.rule_ids) <= 2 * named + 2


def test_flows_are_told_by_their_own_rules_while_rules_change() -> None:
    world = World("compiled", DNS, SSH, ANY_EGRESS)
    lasting, query = tcp(CLIENT, MINE, 22), udp(CLIENT, MINE, 53)
    world.connect(lasting)
    world.decide(query)
    told = world.firewall.live(world.now_ns)
    assert next(told).rule_id == SSH.id
    world.set_rules(SSH, ANY_EGRESS)
    world.advance(40)
    # Makes room of the query, which was the last to name its rule; then the number of that is another one's.
    assert world.decide(tcp(CLIENT, MINE, 22, source_port=50_000)).opened
    world.set_rules(SSH, ANY_EGRESS, rule("z-new", INGRESS, UDP, 54))
    assert [flow.rule_id for flow in told] == [DNS.id]
    assert world.reason(reply(lasting, tcp_flags=16)).name == "ESTABLISHED"
