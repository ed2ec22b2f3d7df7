"""A world whose flow table lives in a file, so that its agent can go down and come back."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from agent_world import Rule, World

from secgroups.agent.compiled_table import CompiledTable
from secgroups.agent.firewall import Firewall
from secgroups.agent.reference import Applied
from secgroups.agent.ruleset import Ruleset, RulesetUpdate

# The header page and the epochs stand before the flows.
HEADER_BYTES = 4096
FLOWS_AT = HEADER_BYTES + (4 << 20)
FLOW_BYTES = 64
# Where a header holds what.
FORMAT_AT, LAYOUT_AT, BOOT_AT, TABLE_ID_AT, SEED_AT = 8, 12, 40, 56, 72


class KeptWorld(World):
    """A ``World`` of the compiled engine that marks what is in force, as the agent does."""

    def __init__(self, path: Path, *rules: Rule, **settings: object) -> None:
        self.path = path
        super().__init__("compiled", *rules, **{"flows_max": 64, "fragments_max": 16, **settings})

    @property
    def names(self) -> Path:
        return self.path.with_name(f"{self.path.name}.names")

    def first_firewall(self) -> Firewall:
        self.table = CompiledTable(self.settings, self.now_ns, self.path)
        return Firewall(self.settings, now_ns=self.now_ns, flows=self.table)

    def apply(self, **update: object) -> Applied:
        applied = super().apply(**update)
        self.firewall.mark(self.mark)
        return applied

    @property
    def mark(self) -> bytes:
        return sha256(str(self.revision).encode()).digest()

    def down(self) -> Ruleset:
        """End the agent; return what was in force. A kill looks the same: nothing is written at the end."""
        held = self.firewall.ruleset
        assert self.table.file is not None
        self.table.file.close()
        return held

    def up(self, held: Ruleset | None, *, judged: bool = True, **settings: object) -> None:
        """Start the next agent with the rules in its cache; it takes them for what the flows were judged by if ``judged``."""
        self.settings = replace(self.settings, **settings)
        self.firewall = self.first_firewall()
        if held is None:
            return
        if judged:
            self.table.inherit(held, self.mark)
        self.firewall.apply(
            RulesetUpdate(
                revision=self.revision,
                snapshot=True,
                sets=tuple(held.sets.values()),
                groups=tuple(held.groups.values()),
                servers=tuple(held.servers.values()),
            ),
            self.now_ns,
        )
        self.firewall.mark(self.mark)

    def reopen(self, *, judged: bool = True, **settings: object) -> None:
        self.up(self.down(), judged=judged, **settings)
