"""The agent: enforces what the controller says and answers verdicts.

The names below are the firewall as a library; each is loaded when it is first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secgroups.agent.firewall import Firewall
    from secgroups.agent.flow import (
        Action,
        Direction,
        Explanation,
        Fragment,
        Packet,
        QuotedPacket,
        Reason,
        TcpFlags,
        Verdict,
    )
    from secgroups.agent.flow_filter import FlowFilter
    from secgroups.agent.ruleset import AddressSet, AddressSetPatch, GroupRules, Rule, Ruleset, RulesetUpdate, ServerBinding
    from secgroups.agent.settings import EngineSettings
    from secgroups.agent.tap import VerdictEvent
    from secgroups.agent.tracking import Flow

_MODULE_OF = {
    "Action": "flow",
    "AddressSet": "ruleset",
    "AddressSetPatch": "ruleset",
    "Direction": "flow",
    "EngineSettings": "settings",
    "Explanation": "flow",
    "Firewall": "firewall",
    "Flow": "tracking",
    "FlowFilter": "flow_filter",
    "Fragment": "flow",
    "GroupRules": "ruleset",
    "Packet": "flow",
    "QuotedPacket": "flow",
    "Reason": "flow",
    "Rule": "ruleset",
    "Ruleset": "ruleset",
    "RulesetUpdate": "ruleset",
    "ServerBinding": "ruleset",
    "TcpFlags": "flow",
    "Verdict": "flow",
    "VerdictEvent": "tap",
}

__all__ = [
    "Action",
    "AddressSet",
    "AddressSetPatch",
    "Direction",
    "EngineSettings",
    "Explanation",
    "Firewall",
    "Flow",
    "FlowFilter",
    "Fragment",
    "GroupRules",
    "Packet",
    "QuotedPacket",
    "Reason",
    "Rule",
    "Ruleset",
    "RulesetUpdate",
    "ServerBinding",
    "TcpFlags",
    "Verdict",
    "VerdictEvent",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
