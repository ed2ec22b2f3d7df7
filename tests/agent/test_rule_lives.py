"""Which rule decides, after any change of many rules that overlap: nested prefixes, port ranges, ICMP types, groups as remotes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from secgroups.agent._engine import CHECKED
from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import ICMP, ICMPV6, SCTP, TCP, UDP, Address, Direction, Packet, TcpFlags
from secgroups.agent.ruleset import AddressSet, GroupRules, Network, Rule, RulesetUpdate, ServerBinding

CHANGES, PROBES = 12, 60
SERVER, OWN = "p/s", {4: ip_address("10.255.0.1"), 6: ip_address("2001:db8:ff::1")}
# Prefixes and probes gather around these: beside each other, and far apart.
BASES: tuple[Address, ...] = tuple(
    map(ip_address, ("10.1.2.3", "10.1.3.3", "10.2.2.3", "203.0.113.7", "2001:db8::7", "2001:db8:0:1::7", "2001:db9::7", "4001::"))
)
GROUPS = ("a", "b", "not-attached")
PROTOCOLS = (None, TCP, TCP, TCP, TCP, UDP, ICMP, ICMP, SCTP, 47, 50)


class RuleLife:
    """A server whose rules change, and questions about packets that would open something."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        # Few remotes make many rules of one remote, whose ports then overlap.
        self.remotes = [self.remote() for _ in range(self.rng.choice([1, 4, 40]))]
        self.groups = {group_id: self.rules(group_id) for group_id in GROUPS}

    def near(self) -> Address:
        """Return an address that has a number of bits in common with one of BASES."""
        base = self.rng.choice(BASES)
        bits = base.max_prefixlen
        number = int(base) ^ (self.rng.getrandbits(bits) >> self.rng.randint(0, bits))
        return IPv4Address(number) if bits == 32 else IPv6Address(number)

    def remote(self) -> Network | str | None:
        chance = self.rng.random()
        if chance < 0.1:
            return None
        if chance < 0.25:
            return self.rng.choice(GROUPS)
        base = self.rng.choice(BASES)
        length = self.rng.randint(0, base.max_prefixlen)
        return ip_network((int(base) if base.version == 4 else base.packed, length), strict=False)

    def port(self) -> int:
        return self.rng.choice([1, 65_535, self.rng.randint(1, 40), self.rng.randint(1, 40), self.rng.randint(1, 65_535)])

    def rule(self, group_id: str) -> Rule:
        rng = self.rng
        protocol = rng.choice(PROTOCOLS)
        ports = icmp_type = icmp_code = None
        if protocol in (TCP, UDP, SCTP) and rng.random() < 0.9:
            first, last = sorted((self.port(), self.port()))
            ports = (first, last)
        if protocol == ICMP and rng.random() < 0.9:
            icmp_type = rng.choice([8, 8, 9, 128, 255])
            icmp_code = rng.choice([None, 0, 1, 255])
        return Rule(
            id=f"{rng.randrange(10_000):04}-{group_id}",
            direction=rng.choice([Direction.INGRESS, Direction.INGRESS, Direction.INGRESS, Direction.EGRESS]),
            protocol=protocol,
            ports=ports,
            icmp_type=icmp_type,
            icmp_code=icmp_code,
            remote=rng.choice(self.remotes),
        )

    def rules(self, group_id: str) -> dict[str, Rule]:
        return {made.id: made for made in (self.rule(group_id) for _ in range(self.rng.choice([0, 3, 12, 60])))}

    def update(self, revision: int) -> RulesetUpdate:
        """Return everything as it is now, after changing something of it."""
        rng = self.rng
        rules = self.groups[rng.choice(GROUPS)]
        group_id = next(each for each, held in self.groups.items() if held is rules)
        for gone in rng.sample(sorted(rules), min(len(rules), rng.choice([0, 1, 1, 2, 8]))):
            del rules[gone]
        for _ in range(rng.choice([0, 1, 1, 2, 8])):
            made = self.rule(group_id)
            rules[made.id] = made
        if rng.random() < 0.05:
            self.groups[group_id] = self.rules(group_id)
        sets = [AddressSet(group_id=each, version=revision, members=self.members()) for each in GROUPS if rng.random() < 0.3]
        return RulesetUpdate(
            revision=revision,
            sets=tuple(sets),
            groups=tuple(self.group(each, revision) for each in GROUPS),
            servers=(
                ServerBinding(server=SERVER, version=revision, addresses=frozenset(OWN.values()), group_ids=self.attached()),
                ServerBinding(server="p/other", version=revision, addresses=frozenset(OWN.values()), group_ids=("a",)),
            ),
        )

    def group(self, group_id: str, revision: int) -> GroupRules:
        return GroupRules(group_id=group_id, version=revision, name=group_id, rules=tuple(self.groups[group_id].values()))

    def attached(self) -> tuple[str, ...]:
        return ("a", "b") if self.rng.random() < 0.9 else ("b",)

    def members(self) -> frozenset[Address]:
        return frozenset(self.near() for _ in range(self.rng.choice([0, 1, 5, 50]))) | frozenset(self.rng.sample(BASES, 2))

    def probe(self) -> Packet:
        rng = self.rng
        remote = rng.choice(BASES) if rng.random() < 0.3 else self.near()
        direction = rng.choice([Direction.INGRESS, Direction.INGRESS, Direction.EGRESS])
        own = OWN[remote.version]
        protocol = rng.choice([TCP, TCP, TCP, UDP, SCTP, 47, 50, 51, ICMP, ICMP])
        if protocol == ICMP and remote.version == 6:
            protocol = ICMPV6
        return Packet(
            server=rng.choice([SERVER, SERVER, "p/other"]),
            direction=direction,
            source=remote if direction is Direction.INGRESS else own,
            destination=own if direction is Direction.INGRESS else remote,
            protocol=protocol,
            source_port=999,
            destination_port=min(65_535, max(1, self.port() + rng.randint(-1, 1))),
            tcp_flags=TcpFlags.SYN,
            icmp_type=rng.choice([8, 9] if remote.version == 4 else [128, 255]),
            icmp_code=rng.choice([0, 1, 2, 255]),
        )


@settings(max_examples=3 if CHECKED else 25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**64 - 1))
def test_the_rule_that_decides_is_the_same_after_any_change(seed):
    life = RuleLife(seed)
    reference, compiled = (Firewall(now_ns=0, engine=engine) for engine in ("reference", "compiled"))
    for revision in range(1, CHANGES + 1):
        update = life.update(revision)
        touched = [firewall.apply(update, revision).servers_touched for firewall in (reference, compiled)]
        assert touched[0] == touched[1], f"seed {seed}, revision {revision}"
        for _ in range(PROBES):
            asked = life.probe()
            told = [firewall.explain(asked, revision).verdict for firewall in (reference, compiled)]
            assert told[0] == told[1], f"seed {seed}, revision {revision}: {asked}"
        assert compiled.flows.check(revision) == []
