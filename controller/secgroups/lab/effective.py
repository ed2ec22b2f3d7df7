"""A controller's effective ruleset as what an engine takes: for judging packets by the rules of now without an agent."""

from __future__ import annotations

from ipaddress import ip_address

from secgroups.agent.convert import group_rules
from secgroups.agent.flow import Address
from secgroups.agent.ruleset import AddressSet, GroupRules, RulesetUpdate, ServerBinding
from secgroups.v1.agent_service_pb2 import GroupRules as GroupRulesMessage
from secgroups.v1.agent_service_pb2 import PolicyRule
from secgroups.v1.ruleset_service_pb2 import EffectiveRuleset
from secgroups.v1.types_pb2 import Server


def server_key(server: Server) -> str:
    """Return the name by which engines know a server."""
    return f"{server.project}/{server.id}"


def server_addresses(server: Server) -> frozenset[Address]:
    """Return the addresses of a server."""
    return frozenset(map(ip_address, server.addresses))


def snapshot_of(ruleset: EffectiveRuleset) -> RulesetUpdate:
    """Return a snapshot in which ``ruleset`` is all there is.

    Raises ``UnenforceableError`` for a rule of a kind that this program does not know.
    """
    server, revision = ruleset.server, ruleset.revision
    return RulesetUpdate(
        revision=revision,
        snapshot=True,
        sets=tuple(
            AddressSet(group_id=remote.group_id, version=revision, members=frozenset(map(ip_address, remote.addresses)))
            for remote in ruleset.remote_groups
        ),
        groups=tuple(_group(ruleset, group_id) for group_id in server.group_ids),
        servers=(
            ServerBinding(
                server=server_key(server),
                version=revision,
                addresses=server_addresses(server),
                group_ids=tuple(server.group_ids),
            ),
        ),
    )


def _group(ruleset: EffectiveRuleset, group_id: str) -> GroupRules:
    """Return the rules of one group. A group without rules goes without a name, which nothing then asks for."""
    found = [effective for effective in ruleset.rules if effective.rule.group_id == group_id]
    return group_rules(
        GroupRulesMessage(
            group_id=group_id,
            version=ruleset.revision,
            name=found[0].group_name if found else "",
            rules=[PolicyRule(id=effective.rule.id, spec=effective.rule.spec) for effective in found],
        )
    )
