"""A look at what is in force, whatever led there: both engines enforce it alike."""

from __future__ import annotations

from agent_world import CLIENT, CLIENT6, DB, SYN, error_about, icmp, tcp, udp

from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import Packet
from secgroups.agent.ruleset import RulesetUpdate
from secgroups.agent.settings import EngineSettings

SECOND = 1_000_000_000
# What objects are called in messages: servers, groups, rules, prefixes.
WORDS = [
    *("p/db", "p/web", "q/db", "p", "", "/", "a/b/c", "g1", "g2", "g3", "r1", "r2", "r3", "r" * 300, "\x00", "é", "default"),
    *("10.0.0.0/8", "10.0.0.0/24", "203.0.113.0/24", "0.0.0.0/0", "::/0", "2001:db8::/32", "10.0.0.1/8", "10.0.0.9"),
    *("::ffff:0:0/96", "fe80::1%eth0/128", "999.0.0.0/8", "e1", "e2", "t1", "t2"),
]
_SETTINGS = EngineSettings(flows_max=64, fragments_max=16)
_LOGIN = tcp(CLIENT, "10.0.0.9", 22)
_PACKETS: tuple[Packet, ...] = (
    *(_LOGIN, tcp("10.0.0.9", CLIENT, 80, SYN), udp(CLIENT6, "2001:db8::9", 53), icmp(CLIENT, "10.0.0.9", 8), error_about(_LOGIN)),
    *(tcp("10.0.0.5", "10.0.0.9", 255, at=DB), udp("10.0.0.9", "10.0.0.5", 1, at=DB)),
)


def check_enforced(firewall: Firewall, now_ns: int = SECOND) -> None:
    """AssertionError if another engine that begins with the same ruleset explains packets otherwise."""
    held = firewall.ruleset
    other = Firewall(_SETTINGS, now_ns=now_ns, engine="reference")
    whole = RulesetUpdate(
        revision=held.revision,
        snapshot=True,
        sets=tuple(held.sets.values()),
        groups=tuple(held.groups.values()),
        servers=tuple(held.servers.values()),
    )
    other.apply(whole, now_ns)
    for packet in _PACKETS:
        told, expected = firewall.explain(packet, now_ns), other.explain(packet, now_ns)
        assert told == expected, (packet, told, expected)
