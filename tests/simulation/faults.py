"""The faults: each takes the world and begins something; what has to end ends by itself, at the latest when all faults end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_life import Host
    from world import World

STEPS_MAX = 400


def begin(world: World, name: str) -> bool:
    """Begin a fault; whether there was something to do it to."""
    return bool(_BEGIN[name](world))


def _some_host(world: World) -> Host:
    return world.random.choice(world.fleet.hosts)


def _some_time_s(world: World) -> float:
    return world.random.choice((0.1, 0.5, 2.0, 6.0)) * (0.5 + world.random.random())


def _reset(world: World) -> bool:
    connections = world.network.open_connections()
    if not connections:
        return False
    connection = world.random.choice(connections)
    connection.reset(world.random.random() * 0.05, world.random.choice((0.0, 0.01, 1.0)) * world.random.random())
    return True


def _reset_in_flight(world: World) -> bool:
    """Lose a connection, the present one or the next, at one of its next messages."""
    host = _some_host(world)
    after = world.random.randint(1, 12)
    for connection in world.network.open_connections():
        if connection.agent.host is host and world.random.random() < 0.5:
            connection.reset_after = connection.messages + after
            return True
    world.network.reset_next[host.name] = after
    return True


def _partition(world: World) -> bool:
    host = _some_host(world)
    return world.network.block(host, up=True, down=True, for_s=_some_time_s(world))


def _one_way_partition(world: World) -> bool:
    up = world.random.random() < 0.5
    return world.network.block(_some_host(world), up=up, down=not up, for_s=_some_time_s(world))


def _refuse(world: World) -> bool:
    link = world.network.links[_some_host(world).name]
    link.refused = True
    world.loop.later(_some_time_s(world), setattr, link, "refused", False)
    _reset(world)
    return True


def _slow_link(world: World) -> bool:
    link = world.network.links[_some_host(world).name]
    delay_s, link.delay_s = link.delay_s, link.delay_s + world.random.choice((0.05, 0.3, 1.0))
    world.loop.later(_some_time_s(world), setattr, link, "delay_s", min(delay_s, world.plan.delay_s))
    return True


def _stuck_reader(world: World) -> bool:
    life = _some_host(world).life
    if life is None or not life.is_up:
        return False
    life.process.paused = True
    world.loop.later(_some_time_s(world), setattr, life.process, "paused", False)
    return True


def _controller_pause(world: World) -> bool:
    if world.seat.life is None:
        return False
    world.seat.life.process.paused = True
    world.loop.later(_some_time_s(world) / 2, setattr, world.seat.life.process, "paused", False)
    return True


def _controller_kill(world: World) -> bool:
    life = world.seat.life
    if life is None:
        return False
    life.process.after_steps(world.random.randint(1, STEPS_MAX), lambda: world.seat.kill(life, _some_time_s(world) / 2))
    return True


def _controller_restart(world: World) -> bool:
    return world.seat.stop(_some_time_s(world) / 2)


def _agent_kill(world: World) -> bool:
    host = _some_host(world)
    life = host.life
    if life is None:
        return False
    life.process.after_steps(world.random.randint(1, STEPS_MAX), lambda: world.fleet.kill(life, _some_time_s(world)))
    return True


def _damage(world: World) -> bool:
    """Kill an agent, with or without a damaged cache when it comes back."""
    host = _some_host(world)
    if host.life is None:
        return False
    how = world.random.choice(("torn", "flipped", "missing", "leftover"))
    world.count(f"cache {how}")
    world.fleet.kill(host.life, _some_time_s(world))
    host.damage(how)
    return True


def _agent_restart(world: World) -> bool:
    life = _some_host(world).life
    return life is not None and world.fleet.stop(life, _some_time_s(world) / 4)


def _new_host(world: World) -> bool:
    """Let an agent id turn up on another machine, its old one gone."""
    host = _some_host(world)
    return host.life is not None and world.fleet.rehouse(host)


def _twin(world: World) -> bool:
    """Start a second process with the id of one that runs."""
    return world.fleet.add_twin(_some_host(world), _some_time_s(world) + 1)


def _disk_full(world: World) -> bool:
    host = _some_host(world)
    if host.disk_full:
        return False
    how = world.random.choice(("full", "broken"))
    world.count(f"disk {how}")
    host.fill_disk(how)
    world.loop.later(_some_time_s(world), host.free_disk)
    return True


def _store_fails(world: World) -> bool:
    if world.seat.life is None:
        return False
    world.seat.life.commits_to_fail = world.random.randint(1, 4)
    return True


def _restore(world: World) -> bool:
    return world.seat.put_back()


def _clock_jump(world: World) -> bool:
    """Set the clock of the controller or of an agent's machine; never by so much that kept answers are forgotten."""
    jump_ns = world.random.choice((-1, 1)) * world.random.choice((1, 60, 900)) * 1_000_000_000
    if world.random.random() < 0.5:
        world.seat.clock_ns = jump_ns
    else:
        _some_host(world).clock_ns = jump_ns
    return True


_BEGIN: dict[str, Callable[[World], bool]] = {
    "reset": _reset,
    "reset_in_flight": _reset_in_flight,
    "partition": _partition,
    "one_way_partition": _one_way_partition,
    "refuse": _refuse,
    "slow_link": _slow_link,
    "stuck_reader": _stuck_reader,
    "controller_pause": _controller_pause,
    "controller_kill": _controller_kill,
    "controller_restart": _controller_restart,
    "agent_kill": _agent_kill,
    "agent_restart": _agent_restart,
    "damage": _damage,
    "new_host": _new_host,
    "twin": _twin,
    "disk_full": _disk_full,
    "store_fails": _store_fails,
    "restore": _restore,
    "clock_jump": _clock_jump,
}
