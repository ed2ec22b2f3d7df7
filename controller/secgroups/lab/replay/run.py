"""A capture sent through a firewall of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import Action, Packet, Verdict
from secgroups.agent.settings import EngineSettings
from secgroups.lab.effective import server_addresses, server_key, snapshot_of
from secgroups.lab.replay.capture import Capture, CaptureError
from secgroups.lab.replay.decode import UnknownLinkError, UnreadableError, open_frame, read_packet
from secgroups.lab.replay.placement import Placement, find_own_hardware
from secgroups.lab.replay.tally import FlowLine, Tally
from secgroups.v1.ruleset_service_pb2 import EffectiveRuleset

# 146 years: what a damaged time stamp may claim at most.
_TIME_NS_MAX = 2**62
PROBLEMS_MAX = 10
_RULE_ID_CHARACTERS_MIN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One packet of the server with its verdict. ``time_ns`` counts from the first frame and never goes back."""

    number: int
    time_ns: int
    packet: Packet
    verdict: Verdict
    group_name: str


@dataclass(slots=True)
class _Counts:
    frames: int = 0
    other: int = 0
    not_ip: int = 0
    cut: int = 0
    malformed: int = 0


class _Clock:
    """Turns times of a file into what the engine wants: from 0 on, never back."""

    def __init__(self) -> None:
        self._start_ns: int | None = None
        self._last_ns = 0
        self.went_back = 0

    def read(self, time_ns: int | None) -> int:
        if time_ns is not None:
            if self._start_ns is None:
                self._start_ns = time_ns
            now_ns = time_ns - self._start_ns
            self.went_back += now_ns < self._last_ns
            self._last_ns = min(max(now_ns, self._last_ns), _TIME_NS_MAX)
        return self._last_ns


class Replay:
    """Judges the packets of ``capture`` by ``ruleset``. Raises ``UnenforceableError``, and ``CaptureError`` for unknown frames.

    With ``everything``, packets that are not the server's are judged too, as if they had come to its wire.
    """

    def __init__(
        self, capture: Capture, ruleset: EffectiveRuleset, *, settings: EngineSettings | None = None, everything: bool = False
    ) -> None:
        self._capture = capture
        self._ruleset = ruleset
        self._server = server_key(ruleset.server)
        self._everything = everything
        self._group_names = {effective.rule.id: effective.group_name for effective in ruleset.rules}
        self._rule_id_characters = _distinct_length(list(self._group_names))
        self._firewall = Firewall(settings or EngineSettings(), now_ns=0)
        self._firewall.apply(snapshot_of(ruleset), 0)
        addresses = server_addresses(ruleset.server)
        try:
            self._placement = Placement(addresses, find_own_hardware(capture.frames(), addresses))
        except UnknownLinkError as error:
            raise CaptureError(str(error)) from None
        self._counts = _Counts()
        self._clock = _Clock()
        self.tally = Tally()
        self.problems: list[str] = []

    def judged(self) -> Iterator[Judged]:
        """Yield the packets in order, each judged when it is asked for. Once only: flows and sums go on."""
        counts = self._counts
        for frame in self._capture.frames():
            counts.frames += 1
            now_ns = self._clock.read(frame.time_ns)
            try:
                opened = open_frame(frame.link_type, frame.data)
                if not opened.version:
                    counts.not_ip += 1
                    continue
                packet = read_packet(opened)
            except UnreadableError as error:
                self._note(frame.number, error)
                continue
            direction = self._placement.find_direction(packet, opened)
            if direction is None:
                counts.other += 1
                if not self._everything:
                    continue
                direction = self._placement.guess_direction(opened)
            packet = replace(packet, server=self._server, direction=direction)
            verdict = self._firewall.decide(packet, now_ns)
            self.tally.count(packet, verdict)
            yield Judged(
                number=frame.number,
                time_ns=now_ns,
                packet=packet,
                verdict=verdict,
                group_name=self.group_name(verdict.rule_id),
            )

    def group_name(self, rule_id: str) -> str:
        """Return the name of a rule's group, empty if there is no such rule."""
        return self._group_names.get(rule_id, "")

    def short_rule_id(self, rule_id: str) -> str:
        """Return the beginning of an id that no other rule of the server has; sgctl takes it for the id."""
        return rule_id[: self._rule_id_characters]

    def _note(self, number: int, error: UnreadableError) -> None:
        if error.cut:
            self._counts.cut += 1
        else:
            self._counts.malformed += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"frame {number}: {error}{', the rest was not recorded' if error.cut else ''}")

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
        tally, counts = self.tally, self._counts
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
            "clock_went_back": self._clock.went_back,
            "damage": self.damage,
        }


def _distinct_length(rule_ids: list[str]) -> int:
    """Return how many characters tell ``rule_ids`` apart, eight at least. Ids begin with the time when they were made."""
    longest = max(map(len, rule_ids), default=0)
    for length in range(_RULE_ID_CHARACTERS_MIN, longest):
        if len({rule_id[:length] for rule_id in rule_ids}) == len(rule_ids):
            return length
    return max(longest, _RULE_ID_CHARACTERS_MIN)
