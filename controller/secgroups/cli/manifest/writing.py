"""A project as a file that makes the same project again."""

from __future__ import annotations

from typing import Any

import yaml

from secgroups.cli.drafts import RuleDraft, ports_text
from secgroups.cli.manifest.present import Present


class _Row(dict[str, Any]):
    """A mapping that is written in one line."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Row, lambda dumper, row: dumper.represent_mapping("tag:yaml.org,2002:map", row, flow_style=True))


def write_manifest(project: str, present: Present) -> str:
    """Return the file: the same for the same state, whatever led there.

    Everything is said, also what is empty, so that applying it leaves nothing as it happens to be.
    """
    groups = {
        name: {"description": group.description, "rules": [_rule(rule) for rule in sorted(group.rules, key=_order)]}
        for name, group in sorted(present.groups.items())
    }
    servers = {
        server.id: {"name": server.name, "addresses": list(server.addresses), "agent": server.agent, "groups": list(server.groups)}
        for _, server in sorted(present.servers.items())
    }
    data = {"groups": groups, "servers": servers}
    # A comment, not the key: the file is for other projects too. Wide enough that a rule is a line whatever its description.
    return f"# project {project}\n" + yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)


def _order(rule: RuleDraft) -> tuple[object, ...]:
    """Ingress first, then by protocol, port, ICMP type and remote."""
    icmp = (-1 if rule.icmp_type is None else rule.icmp_type, -1 if rule.icmp_code is None else rule.icmp_code)
    return (rule.direction == "egress", rule.protocol, rule.ports or (0, 0), icmp, rule.remote.kind, rule.remote.value)


def _rule(rule: RuleDraft) -> _Row:
    row = _Row(direction=rule.direction, protocol=int(rule.protocol) if rule.protocol.isdigit() else rule.protocol)
    if rule.ports is not None:
        row["ports"] = rule.ports[0] if rule.ports[0] == rule.ports[1] else ports_text(rule.ports)
    if rule.icmp_type is not None:
        row["icmp_type"] = rule.icmp_type
    if rule.icmp_code is not None:
        row["icmp_code"] = rule.icmp_code
    row["remote"] = _Row(group=rule.remote.value) if rule.remote.kind == "group" else rule.remote.value or "any"
    if rule.description:
        row["description"] = rule.description
    return row
