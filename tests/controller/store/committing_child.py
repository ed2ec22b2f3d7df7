"""A process that changes a store with several callers at once and says what was acknowledged, until it is killed.

Each line on stdout is one acknowledged change: its revision, the keys of all objects that it changed, and the answer kept for its
request id. Started by ``test_kill.py``; arguments are the file, a seed and a mark that is new for each start.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Any

from store_world import PROJECT, allow

from secgroups.controller import operations as ops
from secgroups.controller.core import Core
from secgroups.controller.errors import RequestError
from secgroups.controller.limits import Limits
from secgroups.controller.store.interface import RequestKey, Transaction
from secgroups.controller.store.sqlite import SqliteStore

CALLERS = 8
LIMITS = Limits(groups_per_project=100_000, servers_per_project=100_000)


def request_key(request_id: str) -> RequestKey:
    return RequestKey(project=PROJECT, method="Any", request_id=request_id, fingerprint=request_id.encode())


class Caller:
    """Makes, changes and deletes objects of its own, one after the other."""

    def __init__(self, core: Core, name: str, number: int, chance: Random) -> None:
        self._core, self._name, self._number, self._chance = core, name, number, chance
        self._count = 0
        self._groups: list[str] = []
        self._servers: list[str] = []

    async def run(self) -> None:
        while True:
            self._count += 1
            unit = f"{self._name}-{self._count}"
            changed: list[str] = []
            answer = partial(said, unit)
            try:
                outcome = await self._core.change(self._operation(unit, changed), request=request_key(unit), encode=answer)
            except RequestError:
                continue
            line = {"revision": outcome.revision, "unit": unit, "keys": sorted(changed)}
            # One write, so that a line is whole or not there.
            os.write(1, json.dumps(line).encode() + b"\n")

    def _operation(self, unit: str, changed: list[str]) -> Any:
        kind = self._chance.choice(["group", "rules", "rules", "server", "attach", "delete"])

        def operate(tx: Transaction) -> None:
            changed.clear()
            if kind == "group" or not self._groups:
                group = ops.create_group(tx, project=PROJECT, name=unit, description=unit)
                self._groups.append(group.id)
                changed.extend([group.id, *(rule.id for rule in tx.rules_of_group(group.id))])
            elif kind == "rules":
                count = self._chance.randint(1, 12)
                group_id = self._chance.choice(self._groups)
                # Each tells of how many it is one, so that a part of them could be seen.
                specs = [allow(port, description=f"{unit}/{count}") for port in range(self._count * 16, self._count * 16 + count)]
                rules = ops.create_rules(tx, project=PROJECT, group_id=group_id, specs=specs, bulk=True)
                changed.extend(rule.id for rule in rules)
            elif kind == "server" or not self._servers:
                address = IPv4Address(int(IPv4Address("10.0.0.0")) + tx.revision * CALLERS + self._number)
                ops.create_server(tx, project=PROJECT, server_id=unit, addresses=[address])
                self._servers.append(unit)
                changed.append(f"{PROJECT}/{unit}")
            else:
                server_id = self._chance.choice(self._servers)
                group_id = self._chance.choice(self._groups)
                if kind == "attach":
                    before = ops.get_server(tx, PROJECT, server_id)
                    after = ops.attach_group(tx, project=PROJECT, server_id=server_id, group_id=group_id)
                    changed.extend([before.key] if after != before else [])
                else:
                    rules = tx.rules_of_group(group_id)
                    ops.delete_group(tx, project=PROJECT, group_id=group_id)
                    self._groups.remove(group_id)
                    changed.extend([group_id, *(rule.id for rule in rules)])

        return operate


def said(unit: str, value: Any, revision: int) -> bytes:
    """Return the answer that is kept for the request of a unit."""
    return f"{unit} at {revision}".encode()


async def main(path: Path, seed: int, mark: str) -> None:
    core = Core(SqliteStore(path, limits=LIMITS))
    await core.change(lambda tx: ops.ensure_default_group(tx, PROJECT))
    os.write(1, json.dumps({"revision": core.state.revision, "unit": "", "keys": []}).encode() + b"\n")
    callers = [Caller(core, f"{mark}-{number}", number, Random(seed * CALLERS + number)) for number in range(CALLERS)]
    await asyncio.gather(*(caller.run() for caller in callers))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
