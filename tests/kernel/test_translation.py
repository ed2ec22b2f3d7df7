"""Translated addresses: other tables translate what servers send and get; rules see who the ends are, not what stands between.

client ─ 192.0.2.254:8080 ─► router translates ─► web 10.0.0.9:80        a service that is published
db ─► router translates, as 192.0.2.254 ─► client                        a server without an address of its own outside
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from agent_world import ACK, SYN_ACK, error_about, reply, tcp, udp
from frames import frame
from netns import ROUTER4, ROUTER6, World, same
from rig import DB, EGRESS, WEB, Rig, allow

from secgroups.agent.flow import Action, Packet

WEB4, DB4, WEB6, DB6 = "10.0.0.9", "10.0.0.5", "2001:db8::9", "2001:db8::5"
CLIENT, OTHER, CLIENT6 = "203.0.113.7", "198.51.100.1", "2001:db8:1::7"
PUBLISHED, HTTP, DNS = 8080, 80, 53
TRANSLATION = f"""
table inet translation {{
    chain published {{
        type nat hook prerouting priority dstnat
        ip daddr {ROUTER4} tcp dport {PUBLISHED} dnat ip to {WEB4}:{HTTP}
        ip6 daddr {ROUTER6} tcp dport {PUBLISHED} dnat ip6 to [{WEB6}]:{HTTP}
        ip daddr {ROUTER4} udp dport {PUBLISHED} dnat ip to {WEB4}:{DNS}
        ip6 daddr {ROUTER6} udp dport {PUBLISHED} dnat ip6 to [{WEB6}]:{DNS}
    }}
    chain hidden {{
        type nat hook postrouting priority srcnat
        ip saddr {{ {DB4}, {OTHER} }} snat ip to {ROUTER4}
        ip6 saddr {DB6} snat ip6 to {ROUTER6}
    }}
}}
"""
FAMILIES = [
    pytest.param(CLIENT, ROUTER4, WEB4, DB4, id="IPv4"),
    pytest.param(CLIENT6, ROUTER6, WEB6, DB6, id="IPv6"),
]


@pytest.fixture(autouse=True)
def translating(world: World) -> Iterator[None]:
    world.nft(TRANSLATION)
    try:
        yield
    finally:
        world.nft("delete table inet translation")


def comes(rig: Rig, source: str, sent: Packet, destination: str, seen: Packet) -> bool:
    """Send a packet from one host; return whether it comes to another as ``seen``."""
    rig.world.wires[destination].drain()
    return any(same(frame(seen), packet) for packet in rig.world.arrivals(source, frame(sent), destination))


def agrees(rig: Rig, passes: bool, judged: Packet) -> bool:
    """Whether the engine says the same of what the rules are to see."""
    return all(verdict.action is Action.ALLOW for verdict in rig.expected(judged)) is passes


@pytest.mark.parametrize("to", [tcp, udp])
@pytest.mark.parametrize(("client", "router", "web", "db"), FAMILIES)
async def test_a_published_service_is_judged_as_what_it_is_behind_the_router(
    rig: Rig, client: str, router: str, web: str, db: str, to: Callable[..., Packet]
) -> None:
    sent, seen = to(client, router, PUBLISHED), to(client, web, HTTP if to is tcp else DNS)
    rules = [allow("http", protocol=6, ports=HTTP, network=f"{client}"), allow("dns", protocol=17, ports=DNS, network=f"{client}")]
    await rig.change(
        groups={"web": [allow("outside", protocol=6, ports=PUBLISHED), allow("d", network=db)]}, servers={WEB: ["web"]}
    )
    await rig.stamped()
    assert agrees(rig, False, seen)
    assert not comes(rig, "client", sent, "web", seen)
    await rig.change(groups={"web": rules})
    assert agrees(rig, True, seen)
    assert comes(rig, "client", sent, "web", seen)
    flags = {"tcp_flags": SYN_ACK} if to is tcp else {}
    assert comes(rig, "web", reply(seen, **flags), "client", reply(sent, **flags))
    if to is tcp:
        sent, seen, flags = replace(sent, tcp_flags=ACK), replace(seen, tcp_flags=ACK), {"tcp_flags": ACK}
        assert comes(rig, "client", sent, "web", seen)
    await rig.change(groups={"web": [allow("out", EGRESS)]})
    assert not comes(rig, "client", sent, "web", seen)
    assert not comes(rig, "web", reply(seen, **flags), "client", reply(sent, **flags))
    await rig.change(groups={"web": rules})
    assert comes(rig, "web", reply(seen, **flags), "client", reply(sent, **flags))
    assert comes(rig, "client", sent, "web", seen)


@pytest.mark.parametrize(("client", "router", "web", "db"), FAMILIES)
async def test_a_server_that_is_hidden_outside_is_judged_by_its_own_rules(
    rig: Rig, client: str, router: str, web: str, db: str
) -> None:
    sent, seen = udp(db, client, DNS), udp(router, client, DNS)
    rules = [allow("out", EGRESS, protocol=17, network=client)]
    await rig.change(groups={"db": [allow("neighbour", EGRESS, protocol=17, network=web), allow("in")]}, servers={DB: ["db"]})
    await rig.stamped()
    assert agrees(rig, False, sent)
    assert not comes(rig, "db", sent, "client", seen)
    await rig.change(groups={"db": rules})
    assert agrees(rig, True, sent)
    assert comes(rig, "db", sent, "client", seen)
    assert comes(rig, "client", reply(seen), "db", reply(sent))
    await rig.change(groups={"db": [allow("in")]})
    assert not comes(rig, "client", reply(seen), "db", reply(sent))
    assert not comes(rig, "db", sent, "client", seen)
    await rig.change(groups={"db": rules})
    assert comes(rig, "client", reply(seen), "db", reply(sent))


@pytest.mark.parametrize(("client", "router", "web", "db"), FAMILIES)
async def test_a_server_that_asks_for_a_published_service_is_known_by_its_group(
    rig: Rig, client: str, router: str, web: str, db: str
) -> None:
    sent, seen = tcp(db, router, PUBLISHED), tcp(router, web, HTTP)
    asks, serves = [allow("asks", EGRESS, protocol=6, ports=HTTP, group="web")], [allow("serves", protocol=6, group="db")]
    members = {"web": [WEB4, WEB6], "db": [DB4, DB6]}
    await rig.change(groups={"web": serves, "db": []}, servers={WEB: ["web"], DB: ["db"]}, members=members)
    await rig.stamped()
    assert not comes(rig, "db", sent, "web", seen)
    await rig.change(groups={"web": [], "db": asks})
    assert not comes(rig, "db", sent, "web", seen)
    await rig.change(groups={"web": serves})
    assert agrees(rig, True, tcp(db, web, HTTP))
    assert comes(rig, "db", sent, "web", seen)
    assert comes(rig, "web", reply(seen, tcp_flags=SYN_ACK), "db", reply(sent, tcp_flags=SYN_ACK))
    await rig.change(members={"db": [client]})
    assert not comes(rig, "db", replace(sent, tcp_flags=ACK), "web", replace(seen, tcp_flags=ACK))
    await rig.change(members=members)
    assert comes(rig, "db", replace(sent, tcp_flags=ACK), "web", replace(seen, tcp_flags=ACK))


async def test_who_is_hidden_from_a_server_is_not_hidden_from_its_rules(rig: Rig) -> None:
    sent, seen = udp(OTHER, WEB4, DNS), udp(ROUTER4, WEB4, DNS)
    await rig.change(groups={"web": [allow("router", network=ROUTER4)]}, servers={WEB: ["web"]})
    assert not comes(rig, "client", sent, "web", seen)
    await rig.change(groups={"web": [allow("other", network=OTHER)]})
    assert comes(rig, "client", sent, "web", seen)


@pytest.mark.parametrize(("client", "router", "web", "db"), FAMILIES)
async def test_an_error_about_a_translated_connection_follows_it(rig: Rig, client: str, router: str, web: str, db: str) -> None:
    published, inner = udp(client, router, PUBLISHED), udp(client, web, DNS)
    hidden, outer = udp(db, client, DNS), udp(router, client, DNS)
    rules = {"web": [allow("dns", protocol=17)], "db": [allow("out", EGRESS, protocol=17)]}
    await rig.change(groups=rules, servers={WEB: ["web"], DB: ["db"]})
    await rig.stamped()
    assert comes(rig, "client", published, "web", inner)
    assert comes(rig, "db", hidden, "client", outer)
    hop = OTHER if "." in client else "2001:db8:2::1"
    of_web, for_client = error_about(inner, source=web), error_about(published, source=router)
    of_hop, for_db = error_about(outer, source=hop), error_about(hidden, source=hop)
    for there in (True, False, True):
        await rig.change(groups=rules if there else {"web": [allow("o", EGRESS)], "db": [allow("i")]})
        assert comes(rig, "web", of_web, "client", for_client) is there
        assert comes(rig, "client", of_hop, "db", for_db) is there
