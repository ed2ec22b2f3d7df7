"""Files of ``sgctl apply`` and of ``sgctl rule replace``: read, or refused in words that name the file."""

from __future__ import annotations

from scratch import scratch_folder

from secgroups.cli.errors import InputError
from secgroups.cli.manifest.nodes import PROBLEMS_MAX
from secgroups.cli.manifest.reading import read_manifest, read_rules

_FILE = scratch_folder() / "manifest.yaml"
_RULES = b"""- {direction: ingress, protocol: tcp, ports: 22, remote: 203.0.113.0/24, description: admins}
- {direction: ingress, protocol: tcp, ports: 80-90, remote: any}
- {direction: egress, protocol: icmp, icmp_type: 8, icmp_code: 0, remote: {group: web}}
- {direction: egress, protocol: 47, remote: "2001:db8::/32"}
"""
SEEDS = [
    _RULES,
    b"rules:\n" + _RULES,
    b"""project: p
groups:
  web: {description: "x", rules: [{direction: ingress, protocol: any, remote: any}]}
  default:
  db:
    rules: []
servers:
  s1: {name: a, addresses: [10.0.0.1, "2001:db8::1"], agent: h1, groups: [web, default]}
  s2:
""",
    b"groups: &a\n  x: &b {rules: [&c {direction: ingress, protocol: tcp, remote: any}, *c]}\n  y: *b\n",
    b"\xef\xbb\xbf# only a comment\n",
]
WORDS = [
    *(b"groups:", b"servers:", b"project:", b"rules:", b"description:", b"addresses:", b"agent:", b"name:", b"direction: ingress"),
    *(b"protocol: tcp", b"ports: 1-65535", b"remote: any", b"{group: web}", b"icmp_type: 8", b"&a ", b"*a", b"<<: *a"),
    *(b"!!python/name:os", b"---\n", b"...\n", b"? ", b"|\n  x", b">-\n", b"~", b"null", b"[", b"]", b"{", b"}", b"\t"),
    *(b"%YAML 1.1\n", b"!!binary ", b"\\U0010ffff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x85", b"\xe2\x80\xa8", b'"\\x00"'),
    *(b"default", b"DEFAULT", b"- ", b": ", b"# "),
]


def run(data: bytes) -> None:
    _FILE.write_bytes(data)
    for read in (read_manifest, read_rules):
        try:
            read(str(_FILE))
        except InputError as error:
            assert str(_FILE) in error.message
            assert len(error.details) <= PROBLEMS_MAX + 1
