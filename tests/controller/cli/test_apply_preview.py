"""What ``apply --dry-run`` says would come and go, groups that are not there yet among it."""

from __future__ import annotations

import re

from cli_world import Sgctl

# The ids of rules that are there already differ from run to run.
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")

NEW_GROUP = """\
groups:
  web:
    rules: [{direction: ingress, protocol: tcp, ports: 443, remote: any}]
  idle: {}
servers:
  w9: {addresses: [10.0.0.99], agent: a2, groups: [web]}
"""


def previewed(sgctl: Sgctl, file: str) -> list[str]:
    lines = sgctl.do("apply", "-f", "-", "--dry-run", stdin=file).lines
    start = next(index for index, line in enumerate(lines) if line.startswith("would change"))
    return [_ID.sub("ID", line) for line in lines[start:]]


def test_a_server_of_a_new_group_gains_the_rules_of_that_group_and_of_no_other(sgctl: Sgctl) -> None:
    sgctl.do("server", "create", "n1", "--address", "10.0.0.5", "--agent", "a1")
    assert previewed(sgctl, NEW_GROUP) == [
        "would change what is allowed at 1 server (w9); would tell 1 agent (a2)",
        "  + ingress tcp 443 from anywhere  (web, new)",
    ]


def test_a_new_group_beside_one_that_is_there_adds_its_rules(sgctl: Sgctl) -> None:
    sgctl.do("group", "create", "ping")
    sgctl.do("rule", "add", "ping", "--preset", "all-icmp", "--remote-any")
    assert previewed(sgctl, NEW_GROUP.replace("[web]", "[web, ping]")) == [
        "would change what is allowed at 1 server (w9); would tell 1 agent (a2)",
        "  + egress any to 0.0.0.0/0  (ping, ID)",
        "  + egress any to ::/0  (ping, ID)",
        "  + ingress icmp from anywhere  (ping, ID)",
        "  + ingress tcp 443 from anywhere  (web, new)",
    ]


def test_a_rule_that_several_servers_gain_is_shown_once(sgctl: Sgctl) -> None:
    file = "servers: {n1: {addresses: [10.0.0.5], agent: a1}, n2: {addresses: [10.0.0.6], agent: a2}}"
    assert previewed(sgctl, file) == [
        "would change what is allowed at 2 servers (n1, n2); would tell 2 agents (a1, a2)",
        "  + egress any to 0.0.0.0/0  (default, ID)",
        "  + egress any to ::/0  (default, ID)",
        "  + ingress any from group default  (default, ID)",
    ]
