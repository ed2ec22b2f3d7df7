"""The agent: enforces what the controller says and answers verdicts.

The names below are the firewall as a library; each is loaded when it is first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secgroups.agent.counters import RuleCount, Stats
    from secgroups.agent.errors import (
        AgentError,
        BaseVersionError,
        ConfigError,
        EngineBrokenError,
        TooManyTapsError,
        UnenforceableError,
    )
    from secgroups.agent.firewall import Firewall
    from secgroups.agent.flow import (
        Action,
        Direction,
        Explanation,
        Fragment,
        NearMiss,
        Packet,
        QuotedPacket,
        Reason,
        TcpFlags,
        Verdict,
    )
    from secgroups.agent.flow_filter import FlowFilter
    from secgroups.agent.records import (
        PackedVerdict,
        pack,
        pack_many,
        quote_dtype,
        record_dtype,
        unpack,
        unpack_verdict,
        verdict_dtype,
    )
    from secgroups.agent.reference import Applied
    from secgroups.agent.ruleset import AddressSet, AddressSetPatch, GroupRules, Rule, Ruleset, RulesetUpdate, ServerBinding
    from secgroups.agent.settings import EngineSettings
    from secgroups.agent.tap import Tap, VerdictEvent
    from secgroups.agent.tracking import Flow

_MODULE_OF = {
    "Action": "flow",
    "AddressSet": "ruleset",
    "AddressSetPatch": "ruleset",
    "AgentError": "errors",
    "Applied": "reference",
    "BaseVersionError": "errors",
    "ConfigError": "errors",
    "Direction": "flow",
    "EngineBrokenError": "errors",
    "EngineSettings": "settings",
    "Explanation": "flow",
    "Firewall": "firewall",
    "Flow": "tracking",
    "FlowFilter": "flow_filter",
    "Fragment": "flow",
    "GroupRules": "ruleset",
    "NearMiss": "flow",
    "PackedVerdict": "records",
    "Packet": "flow",
    "QuotedPacket": "flow",
    "Reason": "flow",
    "Rule": "ruleset",
    "RuleCount": "counters",
    "Ruleset": "ruleset",
    "RulesetUpdate": "ruleset",
    "ServerBinding": "ruleset",
    "Stats": "counters",
    "Tap": "tap",
    "TcpFlags": "flow",
    "TooManyTapsError": "errors",
    "UnenforceableError": "errors",
    "Verdict": "flow",
    "VerdictEvent": "tap",
    "pack": "records",
    "pack_many": "records",
    "quote_dtype": "records",
    "record_dtype": "records",
    "unpack": "records",
    "unpack_verdict": "records",
    "verdict_dtype": "records",
}

__all__ = [
    "Action",
    "AddressSet",
    "AddressSetPatch",
    "AgentError",
    "Applied",
    "BaseVersionError",
    "ConfigError",
    "Direction",
    "EngineBrokenError",
    "EngineSettings",
    "Explanation",
    "Firewall",
    "Flow",
    "FlowFilter",
    "Fragment",
    "GroupRules",
    "NearMiss",
    "PackedVerdict",
    "Packet",
    "QuotedPacket",
    "Reason",
    "Rule",
    "RuleCount",
    "Ruleset",
    "RulesetUpdate",
    "ServerBinding",
    "Stats",
    "Tap",
    "TcpFlags",
    "TooManyTapsError",
    "UnenforceableError",
    "Verdict",
    "VerdictEvent",
    "pack",
    "pack_many",
    "quote_dtype",
    "record_dtype",
    "unpack",
    "unpack_verdict",
    "verdict_dtype",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
