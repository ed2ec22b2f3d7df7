"""What one seed is about: how many agents, which settings, which faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

FAULTS = (
    "reset",
    "reset_in_flight",
    "partition",
    "one_way_partition",
    "refuse",
    "slow_link",
    "stuck_reader",
    "controller_pause",
    "controller_kill",
    "controller_restart",
    "agent_kill",
    "agent_restart",
    "damage",
    "new_host",
    "twin",
    "disk_full",
    "store_fails",
    "restore",
    "clock_jump",
)
# How often each is chosen beside the others.
WEIGHTS = {"reset": 3, "reset_in_flight": 4, "agent_kill": 3, "controller_kill": 3, "store_fails": 2, "damage": 2}
# Kinds of change with their usual weights.
MIX = {
    "create_group": 2,
    "delete_group": 1,
    "rename_group": 1,
    "create_rule": 4,
    "delete_rule": 3,
    "replace_rules": 1,
    "create_server": 4,
    "delete_server": 1,
    "attach": 2,
    "detach": 2,
    "set_groups": 1,
    "move": 2,
    "readdress": 1,
}
# Bounds of the controller, by module, that are so large that no seed would meet them; some seeds make some of them small.
SMALL_LIMITS = {
    "secgroups.controller.store.sqlite": {"CHANGES_REVISIONS_MAX": 6},
    "secgroups.controller.store.timelines": {"TIMELINES_MAX": 2},
    "secgroups.controller.in_force": {"REVISIONS_MAX": 5},
    "secgroups.controller.in_force:crowds": {"CROWD_MIN": 2, "CROWDS_MAX": 2},
    "secgroups.controller.set_history": {"CHANGES_PER_SET_MAX": 2, "ADDRESSES_PER_SET_MAX": 3},
    "secgroups.controller.channel": {"CHUNK_BYTES_MAX": 400, "CATCH_UP_MAX": 1},
    "secgroups.controller.stream_objects": {"CACHE_BYTES_MAX": 500},
    "secgroups.controller.services.stream_wire": {"READY_BYTES_MAX": 500},
}


@dataclass(frozen=True)
class Plan:
    """Chosen by the seed. Times in seconds of virtual time."""

    seed: int
    agent_ids: tuple[str, ...]
    engine: str
    keeps_flows: bool
    heartbeat_s: float
    coalesce_s: float
    reconnect_max_s: float
    cache_interval_s: float
    duration_s: float
    clients: int
    think_s: float
    fault_pause_s: float
    faults: tuple[str, ...]
    delay_s: float
    jitter_s: float
    capacity: int
    # How often each kind of change is made beside the others.
    mix: dict[str, int]
    # Modules whose bounds are small, by their keys in SMALL_LIMITS.
    small_limits: tuple[str, ...] = ()
    # By agent: messages and bytes of the window that it asks for.
    windows: dict[str, tuple[int, int]] = field(default_factory=dict)
    # By agent: the share of its servers that a snapshot may remove.
    max_removals: dict[str, float] = field(default_factory=dict)
    # Agents whose program is too old for some rules.
    old_agents: frozenset[str] = frozenset()


def plan_of(seed: int) -> Plan:
    """Return the plan of a seed."""
    random = Random(f"plan {seed}")
    agent_ids = tuple(f"agent-{number}" for number in range(1, random.randint(2, 6) + 1))
    # A few kinds of fault at a time find more than all of them always.
    faults = tuple(name for name in FAULTS if random.random() < random.choice((0.2, 0.5, 0.9)))
    windows = {
        agent_id: random.choice(((1, 0), (2, 0), (0, 1), (1, 1), (3, 600))) for agent_id in agent_ids if random.random() < 0.3
    }
    much = random.choice(("", "", "move", "move", "attach", "set_groups", "readdress", "replace_rules", "delete_server"))
    return Plan(
        seed=seed,
        agent_ids=agent_ids,
        engine="compiled" if random.random() < 0.25 else "reference",
        keeps_flows=random.random() < 0.7,
        heartbeat_s=random.choice((0.3, 0.5, 1.0, 2.0)),
        coalesce_s=random.choice((0.0, 0.005, 0.05)),
        reconnect_max_s=random.choice((0.5, 2.0, 5.0)),
        cache_interval_s=random.choice((0.05, 0.3, 1.0)),
        duration_s=random.uniform(3, 8),
        clients=random.randint(1, 3),
        think_s=random.choice((0.05, 0.2, 0.5)),
        fault_pause_s=random.choice((0.2, 0.5, 1.5)),
        faults=faults,
        delay_s=random.choice((0.0002, 0.002, 0.02)),
        jitter_s=random.choice((0.0005, 0.01, 0.1)),
        capacity=random.choice((1, 4, 64)),
        # Some seeds do one thing much more often than the others.
        mix={name: weight * (20 if name == much else 1) for name, weight in MIX.items()},
        small_limits=tuple(module for module in SMALL_LIMITS if random.random() < 0.2),
        windows=windows,
        max_removals={agent_id: random.choice((0.2, 0.5, 0.9)) for agent_id in agent_ids if random.random() < 0.2},
        old_agents=frozenset(agent_id for agent_id in agent_ids if random.random() < 0.15),
    )
