"""A capture sent through a firewall of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from sys import byteorder

from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import Action, Packet, Verdict
from secgroups.agent.records import VERDICT_BYTES, unpack_verdict
from secgroups.agent.settings import EngineSettings
from secgroups.lab.effective import server_addresses, server_key, snapshot_of
from secgroups.lab.engines import DEFAULT_ENGINE
from secgroups.lab.replay.capture import Capture, CaptureError
from secgroups.lab.replay.decode import UnknownLinkError
from secgroups.lab.replay.packing import Batch, Packer
from secgroups.lab.replay.placement import Placement, find_own_hardware
from secgroups.lab.replay.tally import FlowLine, Tally
from secgroups.v1.ruleset_service_pb2 import EffectiveRuleset

_RULE_ID_CHARACTERS_MIN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One packet of the server with its verdict. ``time_ns`` counts from the first frame and never goes back."""

    number: int
    time_ns: int
    packet: Packet
    verdict: Verdict
    group_name: str


class Replay:
    """Judges the packets of ``capture`` by ``ruleset``. Raises ``UnenforceableError``, and ``CaptureError`` for unknown frames.

    With ``everything``, packets that are not the server's are judged too, as if they had come to its wire.
    """

    def __init__(
        self,
        capture: Capture,
        ruleset: EffectiveRuleset,
        *,
        settings: EngineSettings | None = None,
        engine: str = DEFAULT_ENGINE,
        everything: bool = False,
    ) -> None:
        self._capture = capture
        self._ruleset = ruleset
        self._server = server_key(ruleset.server)
        self._group_names = {effective.rule.id: effective.group_name for effective in ruleset.rules}
        self._rule_id_characters = _distinct_length(list(self._group_names))
        self._firewall = Firewall(settings or EngineSettings(), now_ns=0, engine=engine)
        self._firewall.apply(snapshot_of(ruleset), 0)
        addresses = server_addresses(ruleset.server)
        try:
            placement = Placement(addresses, find_own_hardware(capture.read(), addresses))
        except UnknownLinkError as error:
            raise CaptureError(str(error)) from None
        handle = self._firewall.server_handle(self._server)
        self._packer = Packer(placement, self._server, addresses, handle, everything=everything)
        self._verdicts: dict[int, Verdict] = {}
        self.tally = Tally(self._verdicts)

    def judged(self) -> Iterator[Judged]:
        """Yield the packets in order, judged in batches that are read ahead. Once only: flows and sums go on."""
        for batch, entries in self._batches():
            for at, (number, time_ns, entry) in enumerate(zip(batch.numbers, batch.times, entries, strict=True)):
                verdict = self._verdicts[entry]
                yield Judged(
                    number=number,
                    time_ns=time_ns,
                    packet=self._packer.packet(batch, at),
                    verdict=verdict,
                    group_name=self.group_name(verdict.rule_id),
                )

    def run(self) -> None:
        """Judge all packets for the flows and sums only. In place of ``judged``."""
        for _ in self._batches():
            pass

    def _batches(self) -> Iterator[tuple[Batch, memoryview]]:
        """Yield batches, judged and counted, with their verdict entries as numbers."""
        for batch in self._packer.batches(self._capture):
            verdicts = bytearray(len(batch.lanes) * VERDICT_BYTES)
            self._firewall.decide_many(batch.records, batch.times[0], verdicts, batch.quotes, batch.times)
            entries = memoryview(verdicts).cast("Q")
            for entry in set(entries) - self._verdicts.keys():
                packed = entry.to_bytes(VERDICT_BYTES, byteorder)
                self._verdicts[entry] = unpack_verdict(packed, self._firewall.rule_id).verdict
            self.tally.count(batch.lanes, entries)
            yield batch, entries

    def group_name(self, rule_id: str) -> str:
        """Return the name of a rule's group, empty if there is no such rule."""
        return self._group_names.get(rule_id, "")

    def short_rule_id(self, rule_id: str) -> str:
        """Return the beginning of an id that no other rule of the server has; sgctl takes it for the id."""
        return rule_id[: self._rule_id_characters]

    @property
    def problems(self) -> list[str]:
        """The first frames that could not be read, in words; up to ``PROBLEMS_MAX``."""
        return self._packer.problems

    @property
    def damage(self) -> str:
        """Why the file was not read to its end, empty if it was."""
        return self._capture.damage

    @property
    def flows(self) -> list[FlowLine]:
        """A line for each flow so far, in order of their first packets."""
        return self.tally.flows

    def totals(self) -> dict[str, object]:
        """Return the sums so far.

        ``other`` packets are not the server's, ``not_ip`` frames carry no IP, ``cut`` and ``malformed`` ones could not be read: the
        recording stopped too early, or the packet itself is damaged.
        """
        tally, counts = self.tally, self._packer.counts
        return {
            "server": self._server,
            "revision": self._ruleset.revision,
            "frames": counts.frames,
            "packets": tally.actions.total(),
            "allowed": tally.actions[Action.ALLOW],
            "denied": tally.actions[Action.DENY],
            "reasons": dict(sorted(tally.reasons.items())),
            "flows": len(tally.flows),
            "flows_opened": tally.opened,
            "packets_of_unlisted_flows": tally.packets_unlisted,
            "other": counts.other,
            "not_ip": counts.not_ip,
            "cut": counts.cut,
            "malformed": counts.malformed,
            "clock_went_back": self._packer.clock.went_back,
            "damage": self.damage,
        }


def _distinct_length(rule_ids: list[str]) -> int:
    """Return how many characters tell ``rule_ids`` apart, eight at least. Ids begin with the time when they were made."""
    longest = max(map(len, rule_ids), default=0)
    for length in range(_RULE_ID_CHARACTERS_MIN, longest):
        if len({rule_id[:length] for rule_id in rule_ids}) == len(rule_ids):
            return length
    return max(longest, _RULE_ID_CHARACTERS_MIN)
