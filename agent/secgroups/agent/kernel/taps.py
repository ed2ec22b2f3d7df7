"""Watching what the kernel makes of packets: it tells of them while somebody watches, and what it tells is offered to taps.

The kernel tells of every denial, and if asked of every packet that is allowed to open something; not of what goes on then. It holds
no packet up for that. What it tells faster than it is read here is lost, and counted as dropped.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from secgroups.agent.effective import Opening
from secgroups.agent.errors import EnforcementError
from secgroups.agent.flow import Action, Direction, Packet, Reason, Verdict
from secgroups.agent.kernel.guards import Guards
from secgroups.agent.kernel.log_prefix import Way
from secgroups.agent.kernel.packet_log import MESSAGES_MAX, LoggedPacket, PacketLog
from secgroups.agent.kernel.settings import Told
from secgroups.agent.tap import ReferenceTap, Taps, TapSettings

if TYPE_CHECKING:
    from secgroups.agent.kernel.enforcer import KernelEnforcer

log = structlog.get_logger(__name__)

POLL_S = 0.05
# So many packets are looked at for each poll at most, in pieces of ``MESSAGES_MAX`` between which others have their turn. What
# comes faster is left to the kernel, which drops it.
POLL_PACKETS_MAX = 256

# These are found by where a packet comes from or goes to, whatever connection it says it belongs to.
_BY_PACKET = frozenset({Reason.SPOOFED_SOURCE, Reason.ROGUE_SERVICE, Reason.NOT_LOCAL, Reason.UNKNOWN_SERVER})


class KernelTaps:
    """The taps of one enforcer, at most ``TAPS_MAX``. ``guards()`` is who is guarded, ``clock`` gives monotonic nanoseconds."""

    def __init__(
        self, enforcer: KernelEnforcer, guards: Callable[[], Guards], clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._enforcer = enforcer
        self._guards = guards
        self._clock = clock
        self._taps = Taps(self._note_closed)
        self._log: PacketLog | None = None
        self._pump: asyncio.Task[None] | None = None
        self._adjusting = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    async def open(self, settings: TapSettings) -> ReferenceTap:
        """Return a new tap; with ``settings.allowed`` it takes what opens something as well as denials.

        TooManyTapsError; EnforcementError if the kernel does not tell.
        """
        tap = self._taps.open(settings)
        try:
            # Goes on if whoever asked goes away: what has been told to the kernel must be known here.
            await asyncio.shield(self._adjust_soon())
        except BaseException:
            tap.close()
            raise
        return tap

    async def close(self) -> None:
        """Close all taps and have the kernel tell nothing any more."""
        self._taps.close()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _note_closed(self) -> None:
        self._adjust_soon().add_done_callback(_log_failure)

    def _adjust_soon(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._adjust())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _adjust(self) -> None:
        """Have the kernel tell what the open taps want, and no more."""
        async with self._adjusting:
            wanted = max((_told(settings) for settings in self._taps.settings), default=Told.NOTHING)
            if wanted is not Told.NOTHING and self._log is None:
                self._log = PacketLog(self._enforcer.settings.log_group)
            try:
                await self._enforcer.tell(wanted)
            finally:
                if not self._taps.settings and self._log is not None:
                    await self._hang_up(self._log)
                elif self._log is not None and self._pump is None:
                    self._pump = asyncio.create_task(self._pumping(self._log))
                    self._pump.add_done_callback(_log_end)

    async def _hang_up(self, packet_log: PacketLog) -> None:
        self._log = None
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
            self._pump = None
        packet_log.close()

    async def _pumping(self, packet_log: PacketLog) -> None:
        ports = {name: server for server, name in self._enforcer.settings.ports.items()}
        told_lost = 0
        while True:
            for _ in range(POLL_PACKETS_MAX // MESSAGES_MAX):
                found = packet_log.read()
                if found is None:
                    break
                self._taps.lose(packet_log.lost - told_lost)
                told_lost = packet_log.lost
                guards, now_ns = self._guards(), self._clock()
                for logged in found:
                    packet = place(logged, guards.servers, ports)
                    self._taps.offer(packet, verdict_of(logged, packet, guards), now_ns)
                await asyncio.sleep(0)
            await asyncio.sleep(POLL_S)


def _told(settings: TapSettings) -> Told:
    return Told.OPENINGS if settings.allowed else Told.DENIALS


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and isinstance(error := task.exception(), EnforcementError):
        log.warning("kernel_log_not_ended", reason=str(error))


def _log_end(pump: asyncio.Task[None]) -> None:
    if not pump.cancelled() and (error := pump.exception()) is not None:
        log.error("kernel_log_not_read", reason=repr(error), consequence="watches show nothing more of the kernel; open them anew")


def place(logged: LoggedPacket, servers: Mapping[bytes, str], ports: Mapping[str, str]) -> Packet:
    """Return the packet as the server sees it whose rules were asked; the server is empty if it is not guarded any more.

    ``servers`` are by packed address, ``ports`` gives the server of an interface.
    """
    packet, by_packet = logged.packet, logged.reason in _BY_PACKET
    # The opener's rules are asked at the source of what the opener sends, and at the destination of what it is answered.
    leaves = (logged.direction is Direction.EGRESS) is not (logged.way is Way.REPLY and not by_packet)
    end = packet.source if leaves else packet.destination
    if leaves and packet.quoted is not None and end.packed not in servers:
        # An error on the way of a connection may come from a router: it is judged as if it came from the end behind that.
        end = packet.quoted.destination
    server = servers.get(end.packed, "")
    if ports and (by_packet or not server):
        server = ports.get(_interface(logged.in_interface if leaves else logged.out_interface), server)
    return replace(packet, server=server, direction=Direction.EGRESS if leaves else Direction.INGRESS)


def _interface(number: int) -> str:
    try:
        return socket.if_indextoname(number)
    except OSError:
        return ""


def verdict_of(logged: LoggedPacket, packet: Packet, guards: Guards) -> Verdict:
    """Return what the kernel made of ``packet``, which is ``logged`` in its place; the rule is the one that would allow it now."""
    if logged.reason.action is Action.DENY:
        return Verdict(reason=logged.reason)
    rules = guards.rules_of(packet.server) if packet.server in guards.ruleset.servers else None
    rule = rules.find(Opening.of(packet)) if rules is not None else None
    return Verdict(reason=logged.reason, rule_id=rule.rule.id if rule is not None else "", opened=logged.way is not Way.ALONE)
