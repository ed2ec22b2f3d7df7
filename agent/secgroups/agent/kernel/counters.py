"""What the kernel has counted: denials by reason, and for each rule the packets that it let open or resume a connection.

The kernel counts in objects that come and go with the rules. What they show is added up each time it is read, so that totals do
not go back; what was counted since the last reading goes with an object that is written anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from secgroups.agent.counters import RuleCount
from secgroups.agent.flow import Reason
from secgroups.agent.kernel.denials import REASONS

_REASON_OF = {reason.name.lower(): reason for reason in REASONS}
# (table, set or counter, element), and packets and bytes.
_Key = tuple[str, str, str]
_Shown = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCounts:
    """Packets denied since the agent's start, and what rules in force have let through: opening and resuming packets alone."""

    denied: Mapping[Reason, int] = field(default_factory=dict)
    rules: Mapping[str, RuleCount] = field(default_factory=dict)


class KernelCounters:
    """Adds up what listings of our tables show."""

    def __init__(self) -> None:
        self._seen: dict[_Key, _Shown] = {}
        self._denied: dict[Reason, int] = {}
        self._rules: dict[str, RuleCount] = {}

    def take(self, listed: Iterable[Mapping[str, Any]]) -> KernelCounts:
        """Return the totals after a listing of a whole table. Those of rules that it does not have are dropped."""
        seen: dict[_Key, _Shown] = {}
        in_force: dict[str, RuleCount] = {}
        for key, rule_id, shown in _shown(listed):
            packets, octets = seen[key] = shown
            before = self._seen.get(key, (0, 0))
            if packets >= before[0]:
                packets, octets = packets - before[0], octets - before[1]
            if rule_id:
                held = in_force.get(rule_id) or self._rules.get(rule_id, RuleCount())
                in_force[rule_id] = RuleCount(packets=held.packets + packets, bytes=held.bytes + octets)
            else:
                reason = _REASON_OF[key[1]]
                self._denied[reason] = self._denied.get(reason, 0) + packets
        self._seen, self._rules = seen, in_force
        return KernelCounts(
            denied={reason: count for reason, count in self._denied.items() if count},
            rules={rule_id: count for rule_id, count in in_force.items() if count.packets},
        )

    def begin(self, table: str) -> None:
        """Note that all counters of ``table`` begin at zero now."""
        self._seen = {key: shown for key, shown in self._seen.items() if key[0] != table}

    def take_denials(self, table: str, shown: Mapping[str, int]) -> Mapping[Reason, int]:
        """Return the packets denied by reason, after the named counters of ``table`` were found to show so many."""
        for name, packets in shown.items():
            if (reason := _REASON_OF.get(name)) is None:
                continue
            before, octets = self._seen.get((table, name, ""), (0, 0))
            self._denied[reason] = self._denied.get(reason, 0) + (packets - before if packets >= before else packets)
            self._seen[table, name, ""] = packets, octets
        return {reason: count for reason, count in self._denied.items() if count}


def _shown(listed: Iterable[Mapping[str, Any]]) -> Iterator[tuple[_Key, str, _Shown]]:
    """Yield what each counter shows, with the id of its rule, empty if it is of a reason."""
    for each in listed:
        if (counter := each.get("counter")) is not None and counter["name"] in _REASON_OF:
            yield (counter["table"], counter["name"], ""), "", (counter["packets"], counter["bytes"])
        elif (boxes := each.get("set")) is not None:
            for made in boxes.get("elem", ()):
                element = made.get("elem", {}) if isinstance(made, dict) else {}
                if "counter" in element and "comment" in element:
                    key = boxes["table"], boxes["name"], str(element["val"])
                    yield key, element["comment"], (element["counter"]["packets"], element["counter"]["bytes"])
