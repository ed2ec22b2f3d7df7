"""Named shorthands for the rules of common services; ports are those registered with IANA."""

from __future__ import annotations

from secgroups.v1 import types_pb2 as types
from secgroups.v1.rule_service_pb2 import Preset


def _ports(protocol: types.Protocol.ValueType, *ports: int) -> list[types.RuleSpec]:
    return [types.RuleSpec(protocol=protocol, ports=types.PortRange(first=port, last=port)) for port in ports]


def _tcp(name: str, description: str, *ports: int) -> Preset:
    return Preset(name=name, description=description, rules=_ports(types.PROTOCOL_TCP, *ports))


def _both(name: str, description: str, *ports: int) -> Preset:
    rules = [*_ports(types.PROTOCOL_UDP, *ports), *_ports(types.PROTOCOL_TCP, *ports)]
    return Preset(name=name, description=description, rules=rules)


def _icmp(name: str, description: str, *icmp_types: int | None) -> Preset:
    return Preset(
        name=name,
        description=description,
        rules=[types.RuleSpec(protocol=types.PROTOCOL_ICMP, icmp_type=icmp_type) for icmp_type in icmp_types],
    )


PRESETS = tuple(
    sorted(
        (
            _icmp("all-icmp", "All ICMP and ICMPv6", None),
            Preset(name="all-tcp", description="All TCP ports", rules=[types.RuleSpec(protocol=types.PROTOCOL_TCP)]),
            Preset(name="all-udp", description="All UDP ports", rules=[types.RuleSpec(protocol=types.PROTOCOL_UDP)]),
            _both("dns", "Domain name system", 53),
            _tcp("etcd", "etcd clients and peers", 2379, 2380),
            _tcp("http", "Web", 80),
            _tcp("https", "Web over TLS", 443),
            _tcp("imap", "Mail retrieval", 143),
            _tcp("imaps", "Mail retrieval over TLS", 993),
            _tcp("kubernetes-api", "Kubernetes API server", 6443),
            _tcp("ldap", "Directory", 389),
            _tcp("ldaps", "Directory over TLS", 636),
            _both("memcached", "memcached", 11211),
            _tcp("mongodb", "MongoDB", 27017),
            _tcp("mssql", "Microsoft SQL Server", 1433),
            _tcp("mysql", "MySQL and MariaDB", 3306),
            _tcp("nfs", "Network file system, version 4", 2049),
            Preset(name="ntp", description="Network time", rules=_ports(types.PROTOCOL_UDP, 123)),
            _tcp("oracle", "Oracle Database", 1521),
            _icmp("ping", "Echo requests of ICMP (8) and ICMPv6 (128)", 8, 128),
            _tcp("pop3s", "Mail retrieval over TLS", 995),
            _tcp("postgresql", "PostgreSQL", 5432),
            _both("rdp", "Remote desktop", 3389),
            _tcp("redis", "Redis", 6379),
            _tcp("smb", "Windows file sharing", 445),
            _tcp("smtp", "Mail transfer", 25),
            _tcp("smtps", "Mail submission over TLS", 465),
            _tcp("ssh", "Secure shell", 22),
            _tcp("submission", "Mail submission", 587),
            _tcp("vnc", "VNC, first display", 5900),
            _tcp("winrm", "Windows remote management", 5985, 5986),
        ),
        key=lambda preset: preset.name,
    )
)
