"""One DecideStream: handles for servers, verdicts for batches of packed packets, ids for the rules that these name.

A batch is decided in one call of the engine, on the event loop: an engine is not for several threads at once. Nothing here is done
once per packet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from secgroups.agent.errors import PacketError
from secgroups.agent.records import QUOTE_BYTES, RECORD_BYTES, VERDICT_BYTES
from secgroups.v1 import verdict_service_pb2 as pb

if TYPE_CHECKING:
    from secgroups.agent.firewall import Firewall

RECORDS_MAX = 16_384
SERVERS_MAX = 4_096
# More than there are records in a batch, so that beginning anew always makes room.
RULES_TOLD_MAX = 65_536


class DecideStream:
    """What one stream has been told, and its answers; ``clock`` gives monotonic nanoseconds."""

    def __init__(self, firewall: Firewall, clock: Callable[[], int]) -> None:
        self._firewall = firewall
        self._clock = clock
        self._told: set[int] = set()

    def answer(self, request: pb.DecideStreamRequest) -> pb.DecideStreamResponse:
        """Return the response to ``request``. PacketError, and then nothing was decided, if it exceeds a bound."""
        if len(request.servers) > SERVERS_MAX:
            raise PacketError("servers", f"{len(request.servers)} of them, the most allowed is {SERVERS_MAX}")
        # Each access of a field of bytes makes a copy.
        records, quotes = request.records, request.quotes
        _check_size("records", len(records), RECORD_BYTES)
        _check_size("quotes", len(quotes), QUOTE_BYTES)
        handles = [self._firewall.server_handle(server) for server in request.servers]
        verdicts = bytearray(len(records) // RECORD_BYTES * VERDICT_BYTES)
        self._firewall.decide_many(records, self._clock(), verdicts, quotes)
        response = pb.DecideStreamResponse(server_handles=handles, verdicts=bytes(verdicts))
        self._tell_rules(verdicts, response)
        return response

    def _tell_rules(self, verdicts: bytearray, response: pb.DecideStreamResponse) -> None:
        named = self._firewall.rules_named(verdicts, self._told)
        if not named:
            return
        if len(self._told) + len(named) > RULES_TOLD_MAX:
            self._told.clear()
            response.rules_begin_anew = True
            named = self._firewall.rules_named(verdicts)
        self._told.update(named)
        response.rules.extend(pb.RuleHandle(handle=handle, rule_id=rule_id) for handle, rule_id in named.items())


def _check_size(field: str, size_bytes: int, entry_bytes: int) -> None:
    if size_bytes % entry_bytes:
        raise PacketError(field, f"{size_bytes} bytes, not a multiple of {entry_bytes}")
    if size_bytes > RECORDS_MAX * entry_bytes:
        raise PacketError(field, f"{size_bytes} bytes, the most allowed is {RECORDS_MAX * entry_bytes}")
