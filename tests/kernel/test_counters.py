"""What the kernel has counted, read back."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import icmp, other, tcp, udp
from rig import DB, EGRESS, WEB, Rig, allow, until

from secgroups.agent.counters import RuleCount
from secgroups.agent.flow import Reason
from secgroups.agent.kernel.counters import KernelCounters
from secgroups.agent.kernel.settings import Told

WEB4, DB4, WEB6 = "10.0.0.9", "10.0.0.5", "2001:db8::9"
CLIENT, CLIENT6 = "203.0.113.7", "2001:db8:1::7"
DNS = allow("dns", protocol=17, ports=53)
HTTP = allow("http", protocol=6, ports=80)


async def test_rules_count_what_they_open_and_reasons_what_they_deny(rig: Rig) -> None:
    await rig.change(groups={"web": [DNS, HTTP]}, servers={WEB: ["web"]})
    await rig.stamped()
    opening = udp(CLIENT, WEB4, 53)
    for _ in range(3):
        assert rig.agree(opening)
    assert rig.agree(udp(CLIENT, WEB4, 53, source_port=41_000))
    assert not rig.agree(tcp(CLIENT, WEB4, 81))
    counts = await rig.enforcer.counts()
    assert counts.denied == {Reason.NO_RULE: 1}
    assert counts.rules == {"dns": RuleCount(packets=2, bytes=2 * 28)}
    await rig.change(groups={"web": [HTTP]})
    assert not rig.agree(opening)
    counts = await rig.enforcer.counts()
    assert counts.denied == {Reason.NO_RULE: 1, Reason.REVOKED: 1}
    assert counts.rules == {}


async def test_every_kind_of_rule_counts_what_it_opens(rig: Rig) -> None:
    rules = [
        allow("anywhere", protocol=6, ports=80),
        allow("by-network", protocol=6, ports=(8000, 8010), network="203.0.113.0/24"),
        allow("by-network6", protocol=17, ports=53, network="2001:db8:1::/48"),
        allow("by-type", protocol=1, icmp=(8, None)),
        allow("no-answer", protocol=1, icmp=(9, None)),
        allow("no-ports", protocol=47),
        allow("to-group", EGRESS, protocol=6, ports=5432, group="db"),
        allow("unused", protocol=6, ports=443),
    ]
    await rig.change(
        groups={"web": rules, "db": [allow("from-group", protocol=6, group="web")]}, servers={WEB: ["web"], DB: ["db"]}
    )
    await rig.change(members={"db": [DB4], "web": [WEB4]})
    await rig.stamped()
    for packet in (
        tcp(CLIENT, WEB4, 80),
        tcp(CLIENT, WEB4, 8005),
        udp(CLIENT6, WEB6, 53),
        icmp(CLIENT, WEB4, 8),
        icmp(CLIENT, WEB4, 9),
        other(CLIENT, WEB4, 47),
        tcp(WEB4, DB4, 5432),
    ):
        assert rig.agree(packet)
    counted = (await rig.enforcer.counts()).rules
    used = {rule.id for rule in rules if rule.id != "unused"} | {"from-group"}
    assert {rule_id: count.packets for rule_id, count in counted.items()} == dict.fromkeys(used, 1)
    assert (counted["anywhere"].bytes, counted["by-network6"].bytes) == (40, 48)


async def test_denials_are_the_same_read_with_the_rules_or_alone(rig: Rig) -> None:
    assert rig.enforcer.denied() == {}
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    for number in range(1, 4):
        assert not rig.passes(tcp(CLIENT, WEB4, 81))
        if number % 2:
            assert rig.enforcer.denied() == {Reason.NO_RULE: number}
        assert (await rig.enforcer.counts()).denied == {Reason.NO_RULE: number}
        assert rig.enforcer.denied() == {Reason.NO_RULE: number}
    rig.world.nft("delete", "table", "inet", "secgroups-a")
    # Of a table that is gone, and of one that begins anew.
    assert rig.enforcer.denied() == {Reason.NO_RULE: 3}
    await until(lambda: "hook" in rig.world.nft("list", "ruleset"), "the table is back")
    await until(lambda: rig.enforcer.stamps, "the enforcer knows of it")
    # More than before, so that nobody can see that it began at zero.
    for _ in range(5):
        assert not rig.passes(tcp(CLIENT, WEB4, 81))
    assert rig.enforcer.denied() == {Reason.NO_RULE: 8}


async def test_counts_stay_when_somebody_begins_to_watch_and_ends(rig: Rig) -> None:
    await rig.change(groups={"web": [HTTP]}, servers={WEB: ["web"]})
    await rig.stamped()
    for told in (Told.NOTHING, Told.OPENINGS, Told.DENIALS, Told.NOTHING):
        await rig.enforcer.tell(told)
        assert rig.passes(tcp(CLIENT, WEB4, 80, source_port=40_000 + told))
        assert not rig.passes(tcp(CLIENT, WEB4, 81))
    counts = await rig.enforcer.counts()
    assert counts.denied == {Reason.NO_RULE: 4}
    assert counts.rules["http"].packets == 3


def listing(packets: int, name: str = "ingress-1.1-4-anywhere") -> list[dict[str, object]]:
    element = {"val": {"concat": ["tcp", 80]}, "comment": "http", "counter": {"packets": packets, "bytes": 60 * packets}}
    return [
        {"set": {"name": name, "table": "t", "elem": [{"elem": element}]}},
        {"counter": {"name": "no_rule", "table": "t", "packets": packets, "bytes": 0}},
    ]


def test_totals_do_not_go_back_when_rules_are_written_anew() -> None:
    counters = KernelCounters()
    told = [
        (counts.rules["http"].packets, counts.denied[Reason.NO_RULE])
        for counts in (
            counters.take(listing(5)),
            counters.take(listing(7)),
            # A new set begins at zero; so does a counter of a new table.
            counters.take(listing(2, "ingress-1.2-4-anywhere")),
            counters.take(listing(3, "ingress-1.2-4-anywhere")),
        )
    ]
    assert told == [(5, 5), (7, 7), (9, 9), (10, 10)]


def test_a_rule_that_is_gone_is_forgotten() -> None:
    counters = KernelCounters()
    counters.take(listing(5))
    assert counters.take([]).rules == {}
    assert counters.take(listing(1)).rules == {"http": RuleCount(packets=1, bytes=60)}
