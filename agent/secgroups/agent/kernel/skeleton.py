"""The chains and sets that every table of ours has, whatever the rules are.

    hook (forward, input, output)
      priority 0   HOOK-opener ──► opener    checks of the packet, then: who opened this connection?   ─► egress-P
      priority 1   HOOK-answerer             and who answers it?                                       ─► ingress-P

``accept`` ends a chain of a hook but not the packet's way: the chain of the next priority sees it too. So both ends of a connection
between two servers of this host are judged, each by a chain of its own, and the first that drops it decides. A packet that has
nothing to do with a server of ours falls through both and is left to other tables.

Ends are found by the connection's tuple: the opener by the source of the original direction, the answerer by the source of the
reply direction. That is the opening packet as it crosses this hook (behind DNAT, before SNAT), for packets of both directions.
Packets without a connection (``invalid``, ``untracked``) are found by their own addresses.

Nearly all packets are of established connections, so what they meet comes first and is little: is the source a server's, and if so
does it come from where it should; who are the ends; are their epochs current. Look-ups cost most. What comes from no server, in the
direction of the opener, was opened by none: that end needs no look-up. In other rules what seldom matches is compared first.

Whenever a rule that names a chain comes, the kernel follows all ways there are from the hooks, through each element of the verdict
maps and through the chains behind it, as often as a way leads there (``nft_chain_validate``). So few ways lead to these maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from secgroups.agent.flow import Direction, Reason
from secgroups.agent.kernel.denials import denials, deny
from secgroups.agent.kernel.marks import MarkLayout
from secgroups.agent.kernel.statements import (
    ACCEPT,
    CONFIRMED,
    RETURN,
    Command,
    Expression,
    Json,
    Table,
    bits,
    concat,
    ct,
    goto,
    header,
    jump,
    match,
    meta,
    one_of,
    set_mark,
    verdict_of,
)

HOOKS = ("forward", "input", "output")
ADDRESS_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}
IP = {4: "ip", 6: "ip6"}
FAMILY_NAMES = {4: "ipv4", 6: "ipv6"}

_SHARED_CHAINS = (
    *("opener", "opener-new", "opener-alone", "answerer-alone", "rogue", "related"),
    *("port-source", "port-destination"),
)

ICMP_PROTOCOLS = one_of(1, 58)
WITHOUT_CONNECTION = match(ct("state"), ["invalid", "untracked"], "in")
_ESTABLISHED = match(ct("state"), "established")
# This host would not send its answers to where the packet comes from.
_NO_WAY_BACK = match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, 0)
_SPOOFED = goto(deny(Reason.SPOOFED_SOURCE, Direction.EGRESS))
_RELATED = match(ct("state"), "related", "in")
UNCONFIRMED = match(bits(ct("status"), "confirmed"), 0)

_UNSPECIFIED = "0.0.0.0"  # noqa: S104 - not bound to, matched
_SOURCES_OF_NOTHING = {
    4: one_of(
        _UNSPECIFIED,
        {"prefix": {"addr": "127.0.0.0", "len": 8}},
        {"prefix": {"addr": "224.0.0.0", "len": 4}},
        "255.255.255.255",
    ),
    6: one_of(
        "::",
        "::1",
        {"prefix": {"addr": "::ffff:0:0", "len": 96}},
        {"prefix": {"addr": "ff00::", "len": 8}},
    ),
}
_FOR_MANY = {
    4: one_of({"prefix": {"addr": "224.0.0.0", "len": 4}}, "255.255.255.255"),
    6: {"prefix": {"addr": "ff00::", "len": 8}},
}
_LINK_LOCAL_SOURCES = one_of("::", {"prefix": {"addr": "fe80::", "len": 10}})
_MAPPED = {"prefix": {"addr": "::ffff:0:0", "len": 96}}
# (source, destination) ports of a DHCP client's requests, by IP version.
_DHCP = {4: (68, 67), 6: (546, 547)}
_BOTH_PORTS = {"payload": {"base": "th", "offset": 0, "len": 32}}
# SEMANTICS 3: neighbour discovery and multicast listener.
_NEIGHBOURS = {Direction.EGRESS: one_of(131, 132, 133, 135, 136, 143), Direction.INGRESS: one_of(130, 134, 135, 136)}
_ROUTER_ADVERTISEMENT = 134
# As in ``screening``: RFC 792, as in nf_conntrack, and RFC 4443, section 2.1.
_ICMP_ERRORS: dict[int, Json] = {4: one_of(3, 4, 5, 11, 12), 6: {"range": [0, 127]}}
# The quoted packet begins with its IP version, behind the eight bytes of the error's own header.
_QUOTED_VERSION_BIT = 64
_ICMP_REPLIES = {4: one_of(0, 14, 16, 18), 6: one_of(129, 140)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the shared chains are made for; ``ports`` says that servers are found by interface as well as by address.

    ``log_group`` is where denials are told while somebody watches them, None while nobody does.
    """

    marks: MarkLayout
    essential_services: bool = True
    ports: bool = False
    log_group: int | None = None


def opening(direction: Direction, version: int) -> str:
    """Return the chain of the checks that go before rules of ``direction`` for packets of IP ``version``."""
    return f"opening-{direction.name.lower()}-{version}"


def set_types() -> dict[str, tuple[str, ...]]:
    """Return the types of the keys of all shared sets and verdict maps, by name."""
    types: dict[str, tuple[str, ...]] = {"ports": ("ifname",), "known_ports": ("ifname",), "port_answers": ("ifname",)}
    for version, address in ADDRESS_TYPES.items():
        types |= {f"{name}{version}": (address,) for name in ("servers", "opens", "answers")}
        types[f"pairs{version}"] = (address, address)
        types[f"port_sources{version}"] = ("ifname", address)
    return types


def is_verdict_map(name: str) -> bool:
    """Whether the elements of a shared set carry a verdict."""
    return name.startswith(("opens", "answers", "port_answers"))


def skeleton(table: Table, features: Features) -> list[Command]:
    """Return the commands for all shared chains, sets and counters, hooked to nothing."""
    commands = [table.add()]
    for name, types in set_types().items():
        commands.append(table.add_verdict_map(name, types) if is_verdict_map(name) else table.add_set(name, types))
    commands += denials(table, features.log_group)
    for chain in _SHARED_CHAINS:
        commands.append(table.add_chain(chain))
    commands += _rogue(table, features) + _related(table)
    commands += _port_source(table, features) + _port_destination(table, features)
    commands += _opener(table, features) + _answerer_alone(table)
    for direction, version in product(Direction, IP):
        chains = opening(direction, version), _stateless(direction, version), _impossible_chain(direction, version)
        commands += map(table.add_chain, chains)
        commands += _impossible(table, direction, version)
        commands += _opening(table, features, direction, version)
        commands += _without_connection(table, features, direction, version)
    return commands


def hooks(table: Table, features: Features) -> list[Command]:
    """Return the commands that put packets through ``table``: the last step, and an atomic one."""
    commands = []
    for hook in HOOKS:
        for priority, role in enumerate((_judge_opener, _judge_answerer)):
            chain = f"{hook}-{('opener', 'answerer')[priority]}"
            commands.append(table.add_base_chain(chain, hook, priority))
            if hook != "forward":
                interface = meta("iifname" if hook == "input" else "oifname")
                commands.append(table.add_rule(chain, "this host to itself", match(interface, "lo"), ACCEPT))
            commands += role(table, features, chain, hook)
    return commands


def _judge_opener(table: Table, features: Features, chain: str, hook: str) -> list[Command]:
    commands = []
    if hook != "output":
        # The packet's source is the opener's, since sources are translated behind these hooks.
        from_opener = [_ESTABLISHED, match(ct("direction"), "original")]
        if features.ports:
            from_opener.append(match(meta("iifname"), "@ports", "!="))
        for version in IP:
            source, servers = header(IP[version], "saddr"), f"@servers{version}"
            commands += [
                table.add_rule(chain, "not opened by a server", *from_opener, match(source, servers, "!="), ACCEPT),
                table.add_rule(chain, "nobody takes a server's address", match(source, servers), _NO_WAY_BACK, _SPOOFED),
            ]
    return [*commands, table.add_rule(chain, "judge the opener", goto("opener"))]


def _judge_answerer(table: Table, features: Features, chain: str, hook: str) -> list[Command]:
    commands = []
    if features.ports and hook != "input":
        to_port = match(meta("oifname"), "@ports")
        commands.append(table.add_rule(chain, "to a server's interface", to_port, jump("port-destination")))
        commands += [
            table.add_rule(
                chain,
                "for many",
                match(header(IP[version], "daddr"), _FOR_MANY[version]),
                verdict_of(meta("oifname"), "port_answers"),
            )
            for version in IP
        ]
    commands += [
        table.add_rule(chain, "by connection", verdict_of(ct(f"{IP[version]} saddr", "reply"), f"answers{version}"))
        for version in IP
    ]
    # Behind those by connection, which match nothing without one.
    return [*commands, table.add_rule(chain, "no connection", WITHOUT_CONNECTION, goto("answerer-alone"))]


def _stateless(direction: Direction, version: int) -> str:
    return f"stateless-{direction.name.lower()}-{version}"


def _impossible_chain(direction: Direction, version: int) -> str:
    return f"impossible-{direction.name.lower()}-{version}"


def _impossible(table: Table, direction: Direction, version: int) -> list[Command]:
    refused = goto(deny(Reason.INVALID_PACKET, direction))
    ported = match(meta("l4proto"), one_of(6, 17, 132))
    rules: list[tuple[str, tuple[Expression, ...]]] = [
        ("source port 0", (match(header("th", "sport"), 0), ported, refused)),
        ("destination port 0", (match(header("th", "dport"), 0), ported, refused)),
        ("ICMP of the other IP version", (match(meta("l4proto"), 58 if version == 4 else 1), refused)),
        ("nothing comes from there", (match(header(IP[version], "saddr"), _SOURCES_OF_NOTHING[version]), refused)),
    ]
    if version == 6:
        rules.append(("IPv4-mapped", (match(header("ip6", "daddr"), _MAPPED), refused)))
    return [table.add_rule(_impossible_chain(direction, version), comment, *expressions) for comment, expressions in rules]


def _rogue(table: Table, features: Features) -> list[Command]:
    refused = goto(deny(Reason.ROGUE_SERVICE, Direction.EGRESS))
    commands = [
        table.add_rule("rogue", "from a server", match(header(IP[version], "saddr"), f"@servers{version}"), refused)
        for version in IP
    ]
    if features.ports:
        commands.append(table.add_rule("rogue", "from a server's interface", match(meta("iifname"), "@ports"), refused))
    return commands


def _related(table: Table) -> list[Command]:
    """An error about a connection comes from one of its ends or from a router, not from another server of this host."""
    host = match({"fib": {"result": "type", "flags": ["saddr"]}}, "local")
    commands = [
        table.add_rule("related", "not an error", match(meta("l4proto"), ICMP_PROTOCOLS, "!="), RETURN),
        # When it is a server too. Nobody else gets here with its address.
        table.add_rule("related", "the host is a router of others", host, RETURN),
    ]
    for version, ip in IP.items():
        for way, end in (("reply", "reply"), ("original", "original")):
            commands.append(
                table.add_rule(
                    "related",
                    "an error of a server about the connection of others",
                    match(header(ip, "saddr"), f"@servers{version}"),
                    match(ct("direction"), way),
                    match(concat(header(ip, "saddr"), ct(f"{ip} saddr", end)), f"@pairs{version}", "!="),
                    goto(deny(Reason.INVALID_STATE, Direction.EGRESS)),
                )
            )
    return commands


def _port_source(table: Table, features: Features) -> list[Command]:
    chain = "port-source"
    commands = [
        table.add_rule(
            chain,
            "its server is not known",
            match(meta("iifname"), "@known_ports", "!="),
            goto(deny(Reason.UNKNOWN_SERVER, Direction.EGRESS)),
        )
    ]
    for version, ip in IP.items():
        own = match(concat(meta("iifname"), header(ip, "saddr")), f"@port_sources{version}")
        commands.append(table.add_rule(chain, "an address of the server", own, RETURN))
    if features.essential_services:
        link_local = match(header("ip6", "saddr"), _LINK_LOCAL_SOURCES)
        neighbours = match(header("icmpv6", "type"), _NEIGHBOURS[Direction.EGRESS])
        commands += [
            table.add_rule(chain, "DHCP client", match(header("ip", "saddr"), _UNSPECIFIED), *_udp(*_DHCP[4]), ACCEPT),
            table.add_rule(chain, "DHCPv6 client", link_local, *_udp(*_DHCP[6]), ACCEPT),
            table.add_rule(chain, "neighbour discovery", link_local, neighbours, ACCEPT),
        ]
    commands.append(table.add_rule(chain, "not an address of the server", _SPOOFED))
    return commands


def _port_destination(table: Table, features: Features) -> list[Command]:
    chain = "port-destination"
    commands = [
        table.add_rule(
            chain,
            "its server is not known",
            match(meta("oifname"), "@known_ports", "!="),
            goto(deny(Reason.UNKNOWN_SERVER, Direction.INGRESS)),
        )
    ]
    for version, ip in IP.items():
        own = match(concat(meta("oifname"), header(ip, "daddr")), f"@port_sources{version}")
        commands.append(table.add_rule(chain, "an address of the server", own, RETURN))
    if features.essential_services:
        neighbours = match(header("icmpv6", "type"), _NEIGHBOURS[Direction.INGRESS])
        commands += [
            table.add_rule(chain, "DHCP client", match(meta("nfproto"), "ipv4"), *_udp(*reversed(_DHCP[4])), ACCEPT),
            table.add_rule(chain, "DHCPv6 client", match(meta("nfproto"), "ipv6"), *_udp(*reversed(_DHCP[6])), ACCEPT),
            table.add_rule(chain, "neighbour discovery", neighbours, ACCEPT),
        ]
    for version, ip in IP.items():
        commands.append(table.add_rule(chain, "for many", match(header(ip, "daddr"), _FOR_MANY[version]), RETURN))
    commands.append(table.add_rule(chain, "not an address of the server", goto(deny(Reason.NOT_LOCAL, Direction.INGRESS))))
    return commands


def _udp(source: int, destination: int) -> tuple[Expression, ...]:
    return match(header("udp", "sport"), source), match(header("udp", "dport"), destination)


def _opener(table: Table, features: Features) -> list[Command]:
    chain, new, alone = "opener", "opener-new", "opener-alone"
    mask = features.marks.mask
    inherited = match(bits(ct("mark"), mask), 0, "!=")
    commands = [
        table.add_rule(chain, "DHCP servers", match(_BOTH_PORTS, server << 16 | client), match(meta("l4proto"), 17), jump("rogue"))
        for client, server in _DHCP.values()
    ]
    is_router = match(header("icmpv6", "type"), _ROUTER_ADVERTISEMENT)
    commands.append(table.add_rule(chain if features.ports else new, "routers", is_router, jump("rogue")))
    if features.ports:
        commands.append(table.add_rule(chain, "from a server's interface", match(meta("iifname"), "@ports"), jump("port-source")))
    commands.append(table.add_rule(chain, "has not gone both ways", match(ct("state"), "established", "!="), jump(new)))
    commands += [
        table.add_rule(chain, "by connection", verdict_of(ct(f"{IP[version]} saddr", "original"), f"opens{version}"))
        for version in IP
    ]
    return [
        *commands,
        # Behind those by connection, which match nothing without one.
        table.add_rule(chain, "no connection", WITHOUT_CONNECTION, goto(alone)),
        # A connection that another one announced (FTP) is born with the mark of that one.
        table.add_rule(new, "a new connection was never judged", UNCONFIRMED, inherited, set_mark(mask, 0)),
        table.add_rule(new, "an error, or a connection that another announced", _RELATED, jump("related")),
        *(table.add_rule(alone, "by packet", verdict_of(header(IP[version], "saddr"), f"opens{version}")) for version in IP),
    ]


def _answerer_alone(table: Table) -> list[Command]:
    return [
        table.add_rule("answerer-alone", "by packet", verdict_of(header(IP[version], "daddr"), f"answers{version}"))
        for version in IP
    ]


def _opening(table: Table, features: Features, direction: Direction, version: int) -> list[Command]:
    chain = opening(direction, version)
    commands = [table.add_rule(chain, "no connection", WITHOUT_CONNECTION, goto(_stateless(direction, version)))]
    if features.essential_services:
        client, server = _DHCP[version]
        source, destination = (client, server) if direction is Direction.EGRESS else (server, client)
        commands.append(
            table.add_rule(
                chain,
                "DHCP client",
                match(meta("l4proto"), 17),
                match(ct("proto-src", "original"), source),
                match(ct("proto-src", "reply"), destination),
                ACCEPT,
            )
        )
    flags = bits(header("tcp", "flags"), ["fin", "syn", "rst", "ack"])
    return [
        *commands,
        table.add_rule(chain, "a connection that was allowed before", CONFIRMED, RETURN),
        table.add_rule(chain, "TCP in mid-stream", match(flags, "syn", "!="), goto(deny(Reason.INVALID_STATE, direction))),
        table.add_rule(chain, "no such packet", jump(_impossible_chain(direction, version))),
    ]


def _without_connection(table: Table, features: Features, direction: Direction, version: int) -> list[Command]:
    chain = _stateless(direction, version)
    refused = goto(deny(Reason.INVALID_STATE, direction))
    commands = [
        table.add_rule(chain, "only ICMP goes without", match(meta("l4proto"), ICMP_PROTOCOLS, "!="), refused),
        table.add_rule(chain, "no such packet", jump(_impossible_chain(direction, version))),
    ]
    if features.essential_services and version == 6:
        neighbours = match(header("icmpv6", "type"), _NEIGHBOURS[direction])
        commands.append(table.add_rule(chain, "neighbour discovery", neighbours, ACCEPT))
    kind = header("icmp" if version == 4 else "icmpv6", "type")
    errors = match(kind, _ICMP_ERRORS[version])
    # A packet that ends before that does not match.
    quotes = match({"payload": {"base": "th", "offset": _QUOTED_VERSION_BIT, "len": 4}}, version)
    return [
        *commands,
        table.add_rule(chain, "an answer to nothing", match(kind, _ICMP_REPLIES[version]), refused),
        table.add_rule(chain, "an error that quotes a packet", errors, quotes, RETURN),
        table.add_rule(chain, "an error about nothing", errors, goto(deny(Reason.INVALID_PACKET, direction))),
    ]
