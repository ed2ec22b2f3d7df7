"""Play random lives to the reference engine and to the compiled one, and tell where they part.

By hand: ``python tests/agent/differential.py --packets 1000000 --seed 7``. A life in which the engines part is made as short as it
can be and printed; ``--life`` plays that one alone. ``--lean`` asks for verdicts alone, which takes a third of the time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lives import Ask, Change, Event, Life, Pass, Restart, make_life
from lives_packets import Asked

from secgroups.agent.counters import Stats
from secgroups.agent.errors import BaseVersionError
from secgroups.agent.firewall import Firewall
from secgroups.agent.flow import ICMP, ICMPV6, Packet, Verdict
from secgroups.agent.records import VERDICT_BYTES, unpack_verdict
from secgroups.agent.reference import Applied
from secgroups.agent.ruleset import RulesetUpdate
from secgroups.agent.table import OPENED_SHIFT, SEEN_SHIFT
from secgroups.agent.tracking import Flow

PACKETS_PER_LIFE = 400
# Everything is compared after so many events, and at the end.
_LOOK_EVERY = 40
_SHRINK_S = 60

Outcome = tuple[Verdict, int]
Player = Callable[[Life, Sequence[Event]], int]


class PartedError(AssertionError):
    """The engines part at event ``at`` of a life."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__(f"event {at}: {what}")
        self.at = at


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """One engine. ``how`` says in which form it is asked: packets, records one by one, records in batches."""

    engine: str
    how: str
    shards: int = 1

    def settings(self, event: Life | Restart) -> Any:
        return replace(event.settings, shards=self.shards)


class Play:
    """A life on its way through the engines.

    The reference and ``single`` are asked packet by packet, as a Packet or as a record in turn, each after its explain; ``batched``
    gets whole batches.
    """

    def __init__(self, life: Life, *, lean: bool = False) -> None:
        self._lean = lean
        self._sides = (
            _Side(engine="reference", how="single"),
            _Side(engine="compiled", how="single"),
            _Side(engine="compiled", how="batch", shards=life.shards),
        )
        self._now_ns = life.start_ns
        self._firewalls = [Firewall(side.settings(life), now_ns=life.start_ns, engine=side.engine) for side in self._sides]
        self._as_record = 0
        self.packets = 0

    def event(self, event: Event) -> None:
        """Let ``event`` happen to all. AssertionError if one does otherwise than another."""
        if isinstance(event, Pass):
            self._now_ns += event.time_ns
        elif isinstance(event, Change):
            self._change(event.update)
        elif isinstance(event, Ask):
            self._ask(event.asked)
        else:
            self._restart(event)

    def _change(self, update: RulesetUpdate) -> None:
        if not self._lean:
            _equal("flows that would be cut", [_or_refusal(_count_cut(each, update, self._now_ns)) for each in self._firewalls])
        answers = [_or_refusal(_apply(each, update, self._now_ns)) for each in self._firewalls]
        _equal("what an update did", [_comparable(answer) if isinstance(answer, Applied) else answer for answer in answers])
        _equal("the ruleset in force", [each.ruleset for each in self._firewalls])

    def _restart(self, event: Restart) -> None:
        self._firewalls = [
            Firewall(side.settings(event), now_ns=self._now_ns, engine=side.engine, flows=before.flows if event.warm else None)
            for side, before in zip(self._sides, self._firewalls, strict=True)
        ]
        self.look_inside()

    def _ask(self, asked: Sequence[Asked]) -> None:
        reference, single, batched = self._firewalls
        if self._lean:
            verdicts = [reference.decide(each.packet, self._now_ns) for each in asked]
            for firewall in (single, batched):
                _equal("verdicts of a batch", [verdicts, [verdict for verdict, _ in _many(firewall, asked, self._now_ns)]])
            self.packets += len(asked)
            return
        expected = []
        for each in asked:
            told = [firewall.explain(each.packet, self._now_ns) for firewall in (reference, single)]
            _equal("explanations", told, each.packet)
            self._as_record = (self._as_record + 1) % 4
            outcome = (told[0].verdict, told[0].step)
            answers = [self._decided(reference, each, self._as_record & 1), self._decided(single, each, self._as_record >> 1)]
            _equal("verdicts", [outcome, *(answer if answer[1] else (answer[0], outcome[1]) for answer in answers)], each.packet)
            expected.append(outcome)
        _equal("verdicts of a batch", [expected, _many(batched, asked, self._now_ns)])
        self.packets += len(asked)

    def _decided(self, firewall: Firewall, asked: Asked, as_record: int) -> Outcome:
        """Return verdict and step; 0 where the call does not tell it."""
        if as_record:
            return _many(firewall, [asked], self._now_ns)[0]
        return firewall.decide(asked.packet, self._now_ns), 0

    def look_inside(self) -> None:
        """Compare all that can be seen of the engines."""
        _equal("statistics", [_told(each.stats(self._now_ns)) for each in self._firewalls])
        _equal("counts of rules", [each.rule_counts() for each in self._firewalls])
        flows = [{flow.key: _as_kept(flow) for flow in each.live(self._now_ns)} for each in self._firewalls]
        _equal("flows", flows)
        for firewall in self._firewalls[1:]:
            faults = firewall.flows.check(self._now_ns)
            assert not faults, f"a table that contradicts itself: {faults}"


def _equal(what: str, values: Sequence[Any], about: Packet | None = None) -> None:
    for value in values[1:]:
        if value != values[0]:
            raise AssertionError(f"{what}{f' for {about}' if about else ''} differ:\n{_difference(values[0], value)}")


def _difference(one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key), other.get(key)) for key in {**one, **other} if one.get(key) != other.get(key)]
        return "\n".join(f"  {key}:\n    {a}\n    {b}" for key, a, b in pairs)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return "\n".join(f"  [{at}]\n    {a}\n    {b}" for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return f"  {one}\n  {other}"


def _many(firewall: Firewall, asked: Sequence[Asked], now_ns: int) -> list[Outcome]:
    records, quotes = bytearray(), bytearray()
    for number, each in enumerate(asked, start=1):
        records += each.record_of(firewall.server_handle(each.packet.server), number)
        quotes += each.quote or bytes(48)
    verdicts = bytearray(len(asked) * VERDICT_BYTES)
    firewall.decide_many(records, now_ns, verdicts, quotes)
    entries = [verdicts[at : at + VERDICT_BYTES] for at in range(0, len(verdicts), VERDICT_BYTES)]
    answers = [unpack_verdict(entry, firewall.rule_id) for entry in entries]
    return [(answer.verdict, answer.step) for answer in answers]


def _apply(firewall: Firewall, update: RulesetUpdate, now_ns: int) -> Callable[[], Any]:
    return lambda: firewall.apply(update, now_ns)


def _count_cut(firewall: Firewall, update: RulesetUpdate, now_ns: int) -> Callable[[], Any]:
    return lambda: firewall.count_cut(update, now_ns)


def _or_refusal(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseVersionError as error:
        return str(error)


def _comparable(applied: Applied) -> Applied:
    # The dead may be dropped with an address, or have been cleared away before.
    return replace(applied, flows_dropped=0)


def _told(stats: Stats) -> dict[str, Any]:
    """Return what both engines must tell alike: the compiled one clears the dead away earlier."""
    return {name: getattr(stats, name) for name in Stats.__slots__ if name not in ("entries", "expired")}


def _as_kept(flow: Flow) -> tuple[Any, ...]:
    opening = flow.opening
    what = (opening.icmp_type, opening.icmp_code) if opening.protocol in (ICMP, ICMPV6) else (opening.port,)
    return (
        (opening.direction, opening.remote, opening.protocol, *what),
        (flow.state, flow.answered, flow.revoked, flow.rule_id, flow.group_id),
        (flow.opened_ns >> OPENED_SHIFT, flow.seen_ns >> SEEN_SHIFT, flow.deadline_ns),
        (flow.opener_packets, flow.opener_bytes, flow.answerer_packets, flow.answerer_bytes),
    )


def play(life: Life, events: Sequence[Event] | None = None, *, lean: bool = False) -> int:
    """Play ``life`` and return how many packets it has. Raises ``PartedError``."""
    going = Play(life, lean=lean)
    at = 0
    try:
        for at, event in enumerate(life.events if events is None else events):
            going.event(event)
            if at % _LOOK_EVERY == 0 and not lean:
                going.look_inside()
        going.look_inside()
    except AssertionError as error:
        raise PartedError(at, str(error)) from error
    return going.packets


def shortest(life: Life, until: int, player: Player = play, limit_s: float = _SHRINK_S) -> tuple[list[Event], str]:
    """Return a short list of events in which the engines still part when ``player`` plays them, and how."""
    deadline_s = time.monotonic() + limit_s
    events, what = _fewer(life, list(life.events[: until + 1]), player, deadline_s)
    apart = [Ask(asked=(each,)) if isinstance(event, Ask) else event for event in events for each in _parts(event)]
    shorter, how = _parting(life, apart, player)
    if shorter is None:
        return events, what
    return _fewer(life, shorter, player, deadline_s) if time.monotonic() < deadline_s else (shorter, how)


def _parts(event: Event) -> tuple[Any, ...]:
    return event.asked if isinstance(event, Ask) else (event,)


def _fewer(life: Life, events: list[Event], player: Player, deadline_s: float) -> tuple[list[Event], str]:
    """Leave out what can be left out: halves, then quarters, in the end one event at a time."""
    what = ""
    size = max(1, len(events) // 2)
    while True:
        at = 0
        while at < len(events) and time.monotonic() < deadline_s:
            shorter, how = _parting(life, events[:at] + _left_of(events[at : at + size]) + events[at + size :], player)
            if shorter is None:
                at += size
            else:
                events, what = shorter, how
        if size == 1 or time.monotonic() > deadline_s:
            return events, what or _parting(life, events, player)[1]
        size //= 2


def _left_of(gone: Sequence[Event]) -> list[Event]:
    """Return the time that passes in events which are left out, so that what remains happens when it did."""
    passed = sum(event.time_ns for event in gone if isinstance(event, Pass))
    return [Pass(time_ns=passed)] if passed and len(gone) > 1 else []


def _parting(life: Life, events: Sequence[Event], player: Player) -> tuple[list[Event] | None, str]:
    try:
        player(life, events)
    except PartedError as error:
        return list(events[: error.at + 1]), str(error)
    return None, ""


def described(life: Life, error: PartedError) -> str:
    """Return how to see a failure again, and the shortest way to it that was found."""
    events, what = shortest(life, error.at)
    lines = [
        f"life {life.seed}, {life.kind.value}, {error}",
        f"from {life.start_ns} ns with {life.settings}, in {len(events)} events:",
    ]
    lines += [f"  {each.packet}" if isinstance(event, Ask) else f"  {event}" for event in events for each in _parts(event)]
    return "\n".join([*lines, what, f"again: python tests/agent/differential.py --life {life.seed}"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--packets", type=int, default=100_000, help="how many packets at least")
    parser.add_argument("--seed", default="1", help="what the lives are made from")
    parser.add_argument("--lean", action="store_true", help="compare verdicts, and the tables at the end of each life, alone")
    parser.add_argument("--life", default="", help="play this life alone")
    asked = parser.parse_args(arguments)
    started, packets, lives, last = time.monotonic(), 0, 0, time.monotonic()
    while packets < (1 if asked.life else asked.packets):
        life = make_life(asked.life or f"{asked.seed}-{lives}", PACKETS_PER_LIFE)
        try:
            packets += play(life, lean=asked.lean)
        except PartedError as error:
            print(described(life, error))
            return 1
        lives += 1
        if time.monotonic() - last > 60:
            last = time.monotonic()
            print(f"{packets} packets in {lives} lives", file=sys.stderr, flush=True)
    took_s = time.monotonic() - started
    print(f"seed {asked.seed}: {packets} packets in {lives} lives, all equal; {took_s:.0f} s, {packets / took_s:.0f}/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
