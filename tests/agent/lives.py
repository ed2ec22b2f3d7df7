"""Random lives of an agent, as values: what it is told, what it is asked, when it restarts, and how time passes in between.

A life is made from a seed alone and knows no engine, so it can be played to any of them, and parts of it can be left out.

Two engines may differ where ages are equal to the precision that a compact table keeps (``SEEN_SHIFT``, ``OPENED_SHIFT`` of
``table``), so lives whose tables overflow let 17 ms pass between questions and ask about a server once in a batch at most; if they
go on with smaller tables, they ask one by one. Roomy tables never overflow: there time may stand still.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from random import Random

from lives_packets import Asked, Traffic
from lives_rules import Changes

from secgroups.agent.errors import BaseVersionError
from secgroups.agent.ruleset import Ruleset, RulesetUpdate
from secgroups.agent.settings import EngineSettings
from secgroups.agent.table import OPENED_SHIFT

SECOND = 1_000_000_000
_TICK_NS = 1 << OPENED_SHIFT
# Time-outs of the contract: lives like to pass exactly one of them, or a nanosecond less.
_TIMEOUTS_S = (10, 30, 60, 120, 300, 600, 432_000)


class Kind(Enum):
    """How much room there is in the tables of a life, which tells what it must not do."""

    ROOMY = "roomy"
    TIGHT = "tight"
    SHRINKING = "shrinking"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Time passes."""

    time_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The agent is told something."""

    update: RulesetUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Packets come, all at once."""

    asked: tuple[Asked, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The agent starts again, with its flow table if ``warm``."""

    settings: EngineSettings
    warm: bool


Event = Pass | Change | Ask | Restart


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A beginning and what comes after it. ``shards`` are those of the engine that is asked in batches."""

    seed: str
    kind: Kind
    start_ns: int
    settings: EngineSettings
    shards: int
    events: tuple[Event, ...]


def make_life(seed: str, packets: int) -> Life:
    """Return the life of ``seed``, in which ``packets`` packets come."""
    return _Maker(seed, packets).made()


class _Maker:
    def __init__(self, seed: str, packets: int) -> None:
        self._seed = seed
        self._packets = packets
        self._rng = Random(seed)
        self._kind = self._rng.choice([Kind.ROOMY, Kind.TIGHT, Kind.TIGHT, Kind.SHRINKING])
        self._settings = self._some_settings()
        self._changes = Changes(self._rng)
        self._traffic = Traffic(self._rng)
        self._ruleset = Ruleset()

    def made(self) -> Life:
        start_ns = self._rng.choice([0, 1_000 * SECOND, 315_360_000 * SECOND])
        return Life(
            seed=self._seed,
            kind=self._kind,
            start_ns=start_ns,
            settings=self._settings,
            shards=self._rng.choice([1, 2, 3]) if self._kind is Kind.ROOMY else 1,
            events=tuple(self._events()),
        )

    def _some_settings(self, before: EngineSettings | None = None) -> EngineSettings:
        rng = self._rng
        made = EngineSettings(
            essential_services=rng.random() < 0.8,
            tcp_loose_s=rng.choice([0, 0, 1, 60, 86_400]),
        )
        if self._kind is Kind.ROOMY:
            return replace(made, flows_max=8_192, server_flows_max=8_192, fragments_max=1_024)
        flows_max, fragments_max = rng.choice([4, 8, 16, 24]), rng.choice([4, 6])
        server_flows_max = rng.choice([4, flows_max, 3 * flows_max])
        if before is not None and self._kind is Kind.TIGHT:
            flows_max = max(flows_max, before.flows_max)
            server_flows_max = max(server_flows_max, before.server_flows_max)
            fragments_max = max(fragments_max, before.fragments_max)
        return replace(made, flows_max=flows_max, server_flows_max=server_flows_max, fragments_max=fragments_max)

    def _events(self) -> Iterator[Event]:
        yield from self._told(self._changes.beginning())
        asked = 0
        while asked < self._packets:
            chance = self._rng.random()
            if chance < 0.08:
                yield from self._told(self._changes.next(self._ruleset))
            elif chance < 0.084:
                yield from self._restarted()
            else:
                ask = Ask(asked=self._batch())
                asked += len(ask.asked)
                yield ask
            if (passed := self._time_ns()) > 0:
                yield Pass(time_ns=passed)

    def _told(self, update: RulesetUpdate) -> Iterator[Event]:
        yield Change(update=update)
        try:
            self._ruleset = self._ruleset.apply(update)
        except BaseVersionError:
            return
        self._traffic.servers = {name: binding.addresses for name, binding in self._ruleset.servers.items()}

    def _restarted(self) -> Iterator[Event]:
        held = self._ruleset
        warm = self._rng.random() < 0.8
        if self._rng.random() < 0.6:
            self._settings = self._some_settings(self._settings if warm else None)
        yield Restart(settings=self._settings, warm=warm)
        self._ruleset = Ruleset()
        if self._rng.random() < 0.2:
            yield Ask(asked=self._batch())
            yield Pass(time_ns=_TICK_NS)
        if self._rng.random() < 0.2:
            # The first word is none that says all: what it does not mention stays until one does.
            yield from self._told(self._changes.part_of(held))
            yield Ask(asked=self._batch())
            yield Pass(time_ns=_TICK_NS)
        yield from self._told(self._changes.whole(held))

    def _batch(self) -> tuple[Asked, ...]:
        if self._kind is Kind.SHRINKING or self._rng.random() < 0.5:
            return (self._traffic.next(),)
        # More than are judged at once in a hundredth of them: 64.
        most = self._rng.choice([2, 3, 5, 8, 20, 150 if self._rng.random() < 0.1 else 5]) if self._kind is Kind.ROOMY else 5
        made = [self._traffic.next() for _ in range(most)]
        if self._kind is Kind.TIGHT:
            made = list({each.packet.server: each for each in made}.values())
        return tuple(made)

    def _time_ns(self) -> int:
        rng = self._rng
        least = 0 if self._kind is Kind.ROOMY else _TICK_NS
        chance = rng.random()
        if chance < 0.70:
            return least
        if chance < 0.92:
            return least + rng.choice([0, 1, rng.randrange(1_000_000_000), rng.randrange(5_000_000_000)])
        if chance < 0.97:
            return rng.choice(_TIMEOUTS_S[:-1]) * SECOND - rng.choice([0, 0, 1])
        if chance < 0.995:
            return least + rng.randrange(200 * SECOND)
        return rng.choice([432_000 * SECOND, 432_000 * SECOND - 1, rng.randrange(400_000 * SECOND) + least])
