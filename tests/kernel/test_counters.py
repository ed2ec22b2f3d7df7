"""What the kernel has counted, read back."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import tcp, udp
from rig import WEB, Rig, allow

from secgroups.agent.counters import RuleCount
from secgroups.agent.flow import Reason
from secgroups.agent.kernel.counters import KernelCounters

WEB4, CLIENT = "10.0.0.9", "203.0.113.7"
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
