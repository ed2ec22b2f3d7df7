"""Runs nft, one process for each transaction."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from secgroups.agent.errors import EnforcementError
from secgroups.agent.kernel.statements import FAMILY, Command

TIMEOUT_S = 30.0
# nft repeats the command that failed, which may be a set of ten thousand members.
_MESSAGE_CHARACTERS_MAX = 300
_RECENT_PROCESSES = 64


class Nft:
    """The nft of this machine, in the network namespace of this process."""

    def __init__(self, program: str = "nft") -> None:
        self._program = program
        self.own_pids: deque[int] = deque(maxlen=_RECENT_PROCESSES)

    async def change(self, commands: Sequence[Command]) -> None:
        """Make one transaction: all of ``commands`` or, with EnforcementError, none."""
        if commands:
            await self._run(("-j", "-f", "-"), json.dumps({"nftables": list(commands)}).encode())

    async def find_table(self, name: str) -> list[dict[str, Any]] | None:
        """Return all objects of a table, None if there is no such table."""
        tables = await self._list("tables", FAMILY)
        if not any(each.get("table", {}).get("name") == name for each in tables):
            return None
        return await self._list("table", FAMILY, name)

    async def base_chains(self) -> list[tuple[str, str]]:
        """Return (table, chain) of all chains of family inet that are hooked to anything."""
        listed = [each["chain"] for each in await self._list("chains", FAMILY) if "chain" in each]
        return [(chain["table"], chain["name"]) for chain in listed if "hook" in chain]

    async def _list(self, *what: str) -> list[dict[str, Any]]:
        listed = json.loads(await self._run(("-j", "list", *what), b""))
        return [each for each in listed["nftables"] if "metainfo" not in each]

    async def _run(self, arguments: Sequence[str], given: bytes) -> bytes:
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(self._program, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise EnforcementError(f"{self._program} can't be run: {error.strerror} (Debian: apt-get install nftables)") from None
        self.own_pids.append(process.pid)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                output, errors = await process.communicate(given)
        except TimeoutError:
            raise EnforcementError(f"{self._program} did not end within {TIMEOUT_S:.0f} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            said = " ".join((errors or output).decode(errors="replace").split())
            raise EnforcementError(f"{self._program} ended with {process.returncode}: {said[:_MESSAGE_CHARACTERS_MAX]}")
        return output
