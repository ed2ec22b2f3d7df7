"""Settings of the engine, chosen at start and fixed for its life."""

from __future__ import annotations

from dataclasses import dataclass

from secgroups.agent.errors import ConfigError

# The smallest tables are for tests that want to see one overflow; the largest flow table is 4 GiB at 64 bytes a flow.
_BOUNDS = {
    "flows_max": (4, 67_108_864),
    "server_flows_max": (4, 67_108_864),
    "tcp_loose_s": (0, 86_400),
    "fragments_max": (4, 1_048_576),
    "shards": (1, 64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine may be told. Raises ``ConfigError``, which names the setting, its value and the bound.

    ``flows_max`` is the capacity of the flow table, ``server_flows_max`` the most of it that one server may hold (more than
    ``flows_max`` means all of it), ``fragments_max`` the capacity of the fragment table. ``tcp_loose_s`` is for how long
    after a cold start TCP is accepted mid-stream. ``essential_services`` lets DHCP and neighbour discovery pass whatever the rules
    say. ``shards`` is how many threads may decide at once without waiting for each other: servers are divided among them, and so
    are the tables.
    """

    essential_services: bool = True
    flows_max: int = 1_048_576
    server_flows_max: int = 65_536
    tcp_loose_s: int = 0
    fragments_max: int = 4_096
    shards: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.essential_services, bool):
            raise ConfigError(f"essential_services {self.essential_services!r} is neither true nor false")
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name} {value!r} is not a whole number")
            if not least <= value <= most:
                raise ConfigError(f"{name} {value} is not in {least}..{most}")
