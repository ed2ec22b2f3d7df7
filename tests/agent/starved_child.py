"""A process that lacks memory while an update is put in force, once at each of many places; it says in JSON what came of it.

Started by ``test_starved.py``; the argument is an empty folder. The place depends on how much more memory a fork of this process
may take, which grows from one fork to the next until the update is in force.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
from ipaddress import ip_address, ip_network
from itertools import islice
from pathlib import Path
from typing import NoReturn

from secgroups.agent.cache import Cache
from secgroups.agent.cache_writer import CacheWriter
from secgroups.agent.errors import EngineBrokenError
from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import TCP, Direction, Packet, TcpFlags
from secgroups.agent.replica import Replica
from secgroups.agent.ruleset import GroupRules, Rule, Ruleset, ServerBinding
from secgroups.agent.settings import EngineSettings
from secgroups.v1 import agent_service_pb2 as pb
from secgroups.v1 import types_pb2 as types

# Each of 128 addresses, which the engine has to know one by one.
NETWORKS = 400
STEP_BYTES, STEPS_MAX = 512 << 10, 100
CLIENT, DATABASE = ip_address("10.9.0.1"), ip_address("10.0.0.9")

OLD = Rule(id="ssh", direction=Direction.INGRESS, protocol=TCP, ports=(22, 22))
GOOD = Ruleset(
    revision=1,
    groups={"db": GroupRules(group_id="db", version=1, name="db", rules=(OLD,))},
    servers={"p/db": ServerBinding(server="p/db", version=1, addresses=frozenset([DATABASE]), group_ids=("db",))},
)


def bigger_update() -> pb.Update:
    """Return an update after which the database is asked on another port; its larger part comes after that."""
    update = pb.Update(nonce=1, revision=2)
    changed = update.groups.add(group_id="db", version=2, name="db").rules.add(id="http").spec
    changed.direction, changed.protocol = types.DIRECTION_INGRESS, types.PROTOCOL_TCP
    changed.ports.first = 80
    changed.anywhere.SetInParent()
    many = update.groups.add(group_id="many", version=2, name="many")
    for number, network in enumerate(islice(ip_network("10.0.0.0/8").subnets(new_prefix=25), NETWORKS)):
        spec = many.rules.add(id=f"rule-{number:04}").spec
        spec.direction, spec.protocol, spec.cidr = types.DIRECTION_INGRESS, types.PROTOCOL_TCP, str(network)
    return update


def asked(port: int) -> Packet:
    return Packet(
        server="p/db",
        direction=Direction.INGRESS,
        source=CLIENT,
        destination=DATABASE,
        protocol=TCP,
        source_port=40_000,
        destination_port=port,
        tcp_flags=TcpFlags.SYN,
    )


class Starved:
    """One agent with ``GOOD`` in force and saved."""

    def __init__(self, folder: Path) -> None:
        self.cache = Cache(folder, "a")
        self.firewall = Firewall(EngineSettings(flows_max=1_024), now_ns=0)
        self.replica = Replica(self.firewall)
        self.replica.restore(GOOD, "e", 0, timeline_id="t")
        self.update = bigger_update()

    def outcome_with(self, more_bytes: int) -> dict[str, object]:
        """Return what comes of the update if it may take ``more_bytes``. To be called once."""
        writer = CacheWriter(self.cache, self.replica)
        self.replica.welcome(pb.Welcome(store_epoch="e", timeline_id="t", mode=pb.SYNC_MODE_RESUMED))
        writer.note()
        asyncio.run(writer.finish())
        writer.note()
        gc.collect()
        raised = self._raised_with(more_bytes)
        told: dict[str, object] = {"raised": type(raised).__name__ if raised else ""}
        told["verdicts"] = [self.firewall.decide(asked(port), 1).reason.name for port in (22, 80)]
        try:
            asyncio.run(writer.finish())
            told["saved"] = "something"
        except EngineBrokenError:
            told["saved"] = "nothing"
        held = self.cache.load()
        told["revision"] = held.ruleset.revision if held else 0
        told["rules"] = [rule.id for rule in held.ruleset.groups["db"].rules] if held else []
        if isinstance(raised, EngineBrokenError):
            told["message"] = str(raised)
            told["later"] = self._refusals()
        return told

    def _raised_with(self, more_bytes: int) -> Exception | None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more_bytes, hard))
        try:
            self.replica.update(self.update, 1)
        except (MemoryError, EngineBrokenError) as error:
            return error
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        return None

    def _refusals(self) -> list[str]:
        refused = []
        self.replica.welcome(pb.Welcome(store_epoch="e", timeline_id="t", mode=pb.SYNC_MODE_RESUMED))
        for attempt in (
            lambda: self.replica.update(self.update, 1),
            lambda: Firewall(EngineSettings(flows_max=1_024), now_ns=1, flows=self.firewall.flows),
        ):
            try:
                attempt()
            except EngineBrokenError:
                refused.append("EngineBrokenError")
        return refused


def main(folder: Path) -> None:
    starved = Starved(folder)
    for step in range(STEPS_MAX):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            tell(starved, step)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status):
            break


def tell(starved: Starved, step: int) -> NoReturn:
    """Say what came of one step; end with status 1 if there need not be another."""
    told = starved.outcome_with(step * STEP_BYTES)
    sys.stdout.write(f"{json.dumps(told)}\n")
    sys.stdout.flush()
    os._exit(0 if told["raised"] else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
