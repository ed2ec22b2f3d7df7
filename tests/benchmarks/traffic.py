"""What benchmarks of verdicts are made of: rulesets of a size, and packed packets in bulk."""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_network

import numpy as np

from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import ICMP, TCP, UDP, Direction
from secgroups.agent.records import VERDICT_BYTES, record_dtype
from secgroups.agent.ruleset import AddressSet, GroupRules, Network, Rule, RulesetUpdate, ServerBinding
from secgroups.agent.settings import EngineSettings

GROUP_RULES = 200
MEMBERS = 10_000
BATCH = 256
SECOND = 1_000_000_000
SYN, ACK = 0x02, 0x10
SERVERS_FIRST = int(IPv4Address("10.0.0.1"))

Records = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A firewall with rules in force and its servers' handles, in the order of their addresses from 10.0.0.1 on."""

    firewall: Firewall
    groups: dict[str, GroupRules]
    handles: np.ndarray


def made_site(
    rules: int, servers: int, flows_max: int, seed: int, *, protocol: int = TCP, shards: int = 1, now_ns: int = SECOND
) -> Site:
    """Return a site with ``rules`` rules in groups of 200; each server is in up to five of them, and one that allows port 443."""
    chance = random.Random(seed)
    count = max(1, rules // GROUP_RULES)
    groups = {
        f"g{number:04}": GroupRules(
            group_id=f"g{number:04}",
            version=1,
            name=f"g{number:04}",
            rules=tuple(random_rule(chance, f"r{number:04}-{each:04}") for each in range(GROUP_RULES)),
        )
        for number in range(count)
    }
    https = Rule(id="s-https", direction=Direction.INGRESS, protocol=protocol, ports=(443, 443), remote=ip_network("0.0.0.0/0"))
    groups["web"] = GroupRules(group_id="web", version=1, name="web", rules=(https,))
    members = frozenset(IPv4Address(SERVERS_FIRST + number) for number in range(MEMBERS))
    names = list(groups)
    bindings = tuple(
        ServerBinding(
            server=f"p/s{number}",
            version=1,
            addresses=frozenset({IPv4Address(SERVERS_FIRST + number)}),
            group_ids=("web", *(names[(number % count + each) % count] for each in range(min(5, count)))),
        )
        for number in range(servers)
    )
    firewall = Firewall(EngineSettings(flows_max=flows_max, server_flows_max=flows_max, shards=shards), now_ns=now_ns)
    firewall.apply(
        RulesetUpdate(
            revision=1,
            snapshot=True,
            sets=(AddressSet(group_id="members", version=1, members=members),),
            groups=tuple(groups.values()),
            servers=bindings,
        ),
        now_ns,
    )
    handles = np.array([firewall.server_handle(f"p/s{number}") for number in range(servers)], dtype=np.uint32)
    return Site(firewall=firewall, groups=groups, handles=handles)


def random_rule(chance: random.Random, rule_id: str) -> Rule:
    """Return one of the rules that people write: a port or a range, from a network of any length or from a group."""
    direction = Direction.INGRESS if chance.random() < 0.9 else Direction.EGRESS
    if chance.random() < 0.05:
        return Rule(id=rule_id, direction=direction, protocol=ICMP, icmp_type=8, remote=random_network(chance))
    first = chance.choice([22, 25, 53, 80, 110, 143, 3306, 5432, 6379, 8080, 9090, chance.randrange(1024, 60_000)])
    last = first if chance.random() < 0.8 else min(65_535, first + chance.randrange(1, 1000))
    remote: Network | str = "members" if chance.random() < 0.1 else random_network(chance)
    return Rule(id=rule_id, direction=direction, protocol=chance.choice([TCP, TCP, UDP]), ports=(first, last), remote=remote)


def random_network(chance: random.Random) -> Network:
    """Return an IPv4 network of 8 to 32 bits."""
    length = chance.choice([8, 12, 16, 16, 20, 22, 24, 24, 24, 28, 32, 32])
    return IPv4Network((chance.getrandbits(32) >> (32 - length) << (32 - length), length))


def packets(site: Site, count: int, port: int, flags: int, seed: int) -> Records:
    """Return TCP packets from as many different clients anywhere to servers in turn, each from an address and port of its own."""
    chance = np.random.default_rng(seed)
    made = np.zeros(count, dtype=record_dtype())
    number = np.arange(count, dtype=np.uint32) % np.uint32(len(site.handles))
    client = chance.integers(int(IPv4Address("16.0.0.0")), int(IPv4Address("126.0.0.0")), count, dtype=np.uint32)
    made["source"] = mapped(client)
    made["destination"] = mapped(np.uint32(SERVERS_FIRST) + number)
    made["server"] = site.handles[number]
    made["source_port"] = chance.integers(1024, 65_536, count, dtype=np.uint32).astype(np.uint16)
    made["destination_port"] = port
    made["protocol"], made["ip_version"], made["direction"], made["tcp_flags"], made["length"] = TCP, 4, 1, flags, 100
    return made


def mapped(addresses: np.ndarray) -> np.ndarray:
    """Return IPv4 addresses, as numbers, as 16 bytes each."""
    made = np.zeros((len(addresses), 16), dtype=np.uint8)
    made[:, 10:12] = 0xFF
    made[:, 12:] = addresses.astype(">u4").view(np.uint8).reshape(-1, 4)
    return made


def turned(records: Records, flags: int) -> Records:
    """Return what the other end sends in the flows of ``records``."""
    made = records.copy()
    made["source"], made["destination"] = records["destination"], records["source"]
    made["source_port"], made["destination_port"] = records["destination_port"], records["source_port"]
    made["direction"], made["tcp_flags"] = 2, flags
    return made


def flagged(records: Records, flags: int) -> Records:
    """Return the same packets with other TCP flags."""
    made = records.copy()
    made["tcp_flags"] = flags
    return made


def decide(site: Site, records: Records, now_ns: int) -> np.ndarray:
    """Return the reasons that records get, in batches."""
    verdicts = np.zeros((len(records), VERDICT_BYTES), dtype=np.uint8)
    for at in range(0, len(records), 8192):
        site.firewall.decide_many(records[at : at + 8192], now_ns, verdicts[at : at + 8192])
    return verdicts[:, 1]
