"""nft's own library, libnftables, in this process: what ``nft -j -f -`` does, without a process for each transaction.

A start of nft costs more than most transactions. Calls are made one at a time in a thread of their own, so that the event loop goes
on meanwhile and the kernel names one process, this thread, as who made our changes.

All changes are made over one netlink socket, which is in a context of nft. The kernel takes apart what a transaction removed in the
background, after a grace period (RCU) of some milliseconds, but whoever closes a socket before that waits for it: so does every
end of an nft process (``nft_rcv_nl_event`` in net/netfilter/nf_tables_api.c). What nft knows of the ruleset it reads again whenever
the kernel's generation number has moved: small changes go past it, over a socket that is kept as well (``batch``); should one fail,
nft has its turn, and says why. A listing has a context of its own, since that keeps all it has read.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, c_char_p, c_int, c_uint, c_uint32, c_void_p
from functools import cache
from typing import Any, TypeVar

from secgroups.agent.errors import EnforcementError, ListingError
from secgroups.agent.kernel.batch import commit, encode
from secgroups.agent.kernel.netlink import open_socket
from secgroups.agent.kernel.statements import FAMILY, Command

LIBRARY = "libnftables.so.1"
TIMEOUT_S = 30.0
# nft repeats the command that failed, which may be a set of ten thousand members.
_MESSAGE_CHARACTERS_MAX = 300
# nftables/libnftables.h: NFT_CTX_OUTPUT_JSON.
_OUTPUT_JSON = 1 << 4

_Result = TypeVar("_Result")


class Nft:
    """The nftables of the network namespace in which the first call is made. Its thread ends with it."""

    def __init__(self) -> None:
        # The kernel's ids of those who make our changes.
        self.own_pids: set[int] = set()
        self._changes: _Context | None = None
        self._batches: socket.socket | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nft", initializer=self._note_thread)

    async def change(self, commands: Sequence[Command]) -> None:
        """Make one transaction: all of ``commands`` or, with EnforcementError, none.

        Whether it was made is not known after a cancellation, or when it took longer than ``TIMEOUT_S``.
        """
        if commands:
            await self._in_thread(lambda: self._change(commands))

    async def find_table(self, name: str) -> list[dict[str, Any]] | None:
        """Return all objects of a table, None if there is no such table. ListingError if nft can't write them as JSON."""
        return await self._in_thread(lambda: self._find_table(name))

    async def base_chains(self) -> list[tuple[str, str]]:
        """Return (table, chain) of all chains of family inet that are hooked to anything."""
        listed = await self._in_thread(lambda: self._list("chains", FAMILY))
        chains = [each["chain"] for each in listed if "chain" in each]
        return [(chain["table"], chain["name"]) for chain in chains if "hook" in chain]

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError:
            raise EnforcementError(f"nftables did not answer within {TIMEOUT_S:.0f} s") from None

    def _change(self, commands: Sequence[Command]) -> None:
        if not self._change_at_once(commands):
            self._change_by_library(commands)

    def _change_at_once(self, commands: Sequence[Command]) -> bool:
        """Make a small change without the library; whether it was made."""
        batch = encode(commands)
        if batch is None:
            return False
        try:
            if self._batches is None:
                self._batches = open_socket()
            commit(batch, self._batches)
        except OSError:
            # The library finds out what is wrong, in words.
            return False
        return True

    def _change_by_library(self, commands: Sequence[Command]) -> None:
        if self._changes is None:
            self._changes = _Context(_load())
        self._changes.run(json.dumps({"nftables": list(commands)}).encode())

    def _find_table(self, name: str) -> list[dict[str, Any]] | None:
        # Not looked up in the list of all tables: nft 1.0.6 can't write that as JSON when one of them has flags.
        try:
            return self._list("table", FAMILY, name)
        except EnforcementError as error:
            if os.strerror(errno.ENOENT) in str(error):
                return None
            raise

    def _list(self, *what: str) -> list[dict[str, Any]]:
        given = " ".join(("list", *what))
        try:
            listed = json.loads(_Context(_load()).run(given.encode()))
        except ValueError as error:
            raise ListingError(f"nft {given}: the answer is no JSON: {error}") from None
        return [each for each in listed["nftables"] if "metainfo" not in each]

    def _note_thread(self) -> None:
        self.own_pids.add(threading.get_native_id())


class _Context:
    """A context of libnftables: a netlink socket, and what nft has read over it; both go with this object."""

    def __init__(self, library: CDLL) -> None:
        self._library = library
        self._context: int | None = library.nft_ctx_new(0)
        if self._context is None or library.nft_ctx_buffer_output(self._context) or library.nft_ctx_buffer_error(self._context):
            raise EnforcementError("nftables can't be talked to: there is no memory for it")
        library.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON)

    def __del__(self) -> None:
        if self._context is not None:
            self._library.nft_ctx_free(self._context)

    def run(self, given: bytes) -> bytes:
        """Run commands, as JSON or in nft's own words, as one transaction; return what nft says. EnforcementError if it refuses."""
        failed = self._library.nft_run_cmd_from_buffer(self._context, given)
        # Both are to be taken each time: that is what empties them.
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
        errors: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            said = " ".join((errors or output).decode(errors="replace").split())
            raise EnforcementError(f"nftables refused: {said[:_MESSAGE_CHARACTERS_MAX]}")
        return output


@cache
def _load() -> CDLL:
    """Return the library, its functions with their types (nftables/libnftables.h). EnforcementError if it can't be had."""
    try:
        library = CDLL(LIBRARY)
    except OSError as error:
        raise EnforcementError(f"{LIBRARY} can't be loaded: {error} (Debian: apt-get install nftables)") from None
    library.nft_ctx_new.restype, library.nft_ctx_new.argtypes = c_void_p, [c_uint32]
    library.nft_ctx_free.restype, library.nft_ctx_free.argtypes = None, [c_void_p]
    library.nft_ctx_output_set_flags.restype, library.nft_ctx_output_set_flags.argtypes = None, [c_void_p, c_uint]
    library.nft_run_cmd_from_buffer.restype, library.nft_run_cmd_from_buffer.argtypes = c_int, [c_void_p, c_char_p]
    for buffer in (library.nft_ctx_buffer_output, library.nft_ctx_buffer_error):
        buffer.restype, buffer.argtypes = c_int, [c_void_p]
    for contents in (library.nft_ctx_get_output_buffer, library.nft_ctx_get_error_buffer):
        contents.restype, contents.argtypes = c_char_p, [c_void_p]
    return library
