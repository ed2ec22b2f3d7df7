"""The engine as others use it: in the agent's services, in replay and in the case runner."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from secgroups.agent.compiled import CompiledEngine
from secgroups.agent.compiled_table import CompiledTable
from secgroups.agent.counters import RuleCount, Stats
from secgroups.agent.errors import ConfigError
from secgroups.agent.flow import Explanation, Packet, Verdict
from secgroups.agent.flow_filter import EVERY_FLOW, FlowFilter
from secgroups.agent.reference import Applied, ReferenceEngine
from secgroups.agent.ruleset import Ruleset, RulesetUpdate
from secgroups.agent.settings import EngineSettings
from secgroups.agent.table import FlowTable
from secgroups.agent.tap import Tap, TapSettings
from secgroups.agent.tracking import Flow

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


# Each engine has a table of its own kind, and goes on with no other.
Flows = FlowTable | CompiledTable


class Engine(Protocol):
    """What every engine can do; ``ReferenceEngine`` says what it means."""

    def __init__(self, settings: EngineSettings, now_ns: int, flows: Any = None) -> None: ...

    @property
    def ruleset(self) -> Ruleset: ...

    @property
    def flows(self) -> Flows: ...

    def apply(self, update: RulesetUpdate, now_ns: int) -> Applied: ...

    @property
    def decide(self) -> Callable[[Packet | bytes, int], Verdict]: ...

    @property
    def decide_many(self) -> DecideMany: ...

    def server_handle(self, server: str) -> int: ...

    def rule_id(self, handle: int) -> str: ...

    def rules_named(self, verdicts: ReadableBuffer, known: Container[int] = ()) -> dict[int, str]: ...

    def explain(self, packet: Packet, now_ns: int) -> Explanation: ...

    def live(self, now_ns: int, wanted: FlowFilter) -> Iterator[Flow]: ...

    def watch(self, settings: TapSettings) -> Tap: ...

    def count_cut(self, update: RulesetUpdate, now_ns: int) -> int: ...

    def counting_cut(self, update: RulesetUpdate, now_ns: int) -> Iterator[int]: ...

    def mark(self, mark: bytes) -> None: ...

    def stats(self, now_ns: int) -> Stats: ...

    def counting_stats(self, now_ns: int) -> Iterator[Stats | None]: ...

    def rule_counts(self) -> dict[str, RuleCount]: ...


ENGINES: dict[str, type[Engine]] = {"compiled": CompiledEngine, "reference": ReferenceEngine}


class DecideMany(Protocol):
    """What ``Firewall.decide_many`` is."""

    def __call__(
        self,
        records: ReadableBuffer,
        now_ns: int,
        verdicts: WriteableBuffer,
        quotes: ReadableBuffer = b"",
        times: ReadableBuffer | None = None,
    ) -> None: ...


class Firewall:
    """Verdicts for the packets of the servers that one agent guards.

    Every ``now_ns`` is monotonic nanoseconds and never goes back between calls. With the compiled engine several threads may decide
    at once, and one of them may apply; the reference engine is for one thread.

    ``decide(packet, now_ns)`` returns the verdict for a ``Packet``, or for a record of 64 bytes, and tracks the flow if it is
    allowed. It raises nothing; a full table denies.

    ``decide_many(records, now_ns, verdicts, quotes=b"", times=None)`` writes one 8-byte verdict entry per 64-byte record, in order;
    later records see the flows that earlier ones opened. All are C-contiguous buffers of whole entries, laid out as ``records``
    (the module) says, of any item type and shape; ``verdicts`` has room for exactly as many as there are records and shares no
    memory with them. ValueError, which names the sizes, if not; then nothing was decided. With ``times``, one u64 of nanoseconds
    per record in the byte order of this machine, every record is judged at its own time (a capture, a queue that was read late).
    They begin no earlier than ``now_ns`` and never go back: ValueError if they do.

    Both are the engine's own: a call of a method on the way to it would take as long as the verdict.
    """

    decide: Callable[[Packet | bytes, int], Verdict]
    decide_many: DecideMany

    def __init__(
        self,
        settings: EngineSettings | None = None,
        *,
        now_ns: int,
        engine: str = "compiled",
        flows: Flows | None = None,
    ) -> None:
        """Start cold, or warm with the ``flows`` of a firewall that is not asked any more.

        Either way nothing is in force before the first ``apply``, which should be a snapshot. Raises ``ConfigError`` if there is no
        such ``engine``.
        """
        made = ENGINES.get(engine)
        if made is None:
            raise ConfigError(f"engine {engine!r} is not one of: {', '.join(sorted(ENGINES))}")
        self._engine = made(settings or EngineSettings(), now_ns, flows)
        self.decide = self._engine.decide
        self.decide_many = self._engine.decide_many

    @property
    def ruleset(self) -> Ruleset:
        """What is in force."""
        return self._engine.ruleset

    @property
    def flows(self) -> Flows:
        """The flow table: for a look at it, or for the next firewall (a warm restart)."""
        return self._engine.flows

    def apply(self, update: RulesetUpdate, now_ns: int) -> Applied:
        """Put ``update`` in force, whole. Raises ``BaseVersionError``, and then nothing has changed.

        ``EngineBrokenError`` if it failed half way, most likely for want of memory: everything is denied from then on, and a new
        firewall has to be made, without these flows.
        """
        return self._engine.apply(update, now_ns)

    def mark(self, mark: bytes) -> None:
        """Say for a later process, in 32 bytes, what is in force; it holds until the next ``apply`` (see ``flow_file``)."""
        self._engine.mark(mark)

    def server_handle(self, server: str) -> int:
        """Return the number by which records name ``server`` (``project/id``), 0 if it is not guarded.

        It holds for the life of this firewall, or until the server goes; it then names none, and never another. A server that
        comes back has a new one.
        """
        return self._engine.server_handle(server)

    def rule_id(self, handle: int) -> str:
        """Return the id of the rule that verdict entries name by ``handle``, empty if it is 0 or of a rule that is gone.

        The handle of a rule that is gone holds while a flow names it, in any case until the next ``apply``; it never names another.
        """
        return self._engine.rule_id(handle)

    def rules_named(self, verdicts: ReadableBuffer, known: Container[int] = ()) -> dict[int, str]:
        """Return the ids of all rules that verdict entries name, by handle, those in ``known`` left out.

        ``verdicts`` are whole entries as ``decide_many`` wrote them, with no ``apply`` in between.
        """
        return self._engine.rules_named(verdicts, known)

    def explain(self, packet: Packet, now_ns: int) -> Explanation:
        """Return what ``decide`` would answer now, and why. Changes nothing."""
        return self._engine.explain(packet, now_ns)

    def live(self, now_ns: int, wanted: FlowFilter = EVERY_FLOW) -> Iterator[Flow]:
        """Yield the wanted flows that are not over at ``now_ns``, in no order that means anything.

        Verdicts and updates may go on meanwhile: a flow is told as it is when it is reached, or shortly before; one that goes
        before that is not told, one that is opened may be missing.
        """
        return self._engine.live(now_ns, wanted)

    def watch(self, events_max: int, *, one_in: int = 1, allowed: bool = False) -> Tap:
        """Return a tap that holds up to ``events_max`` verdicts of those given from now on, until they are read.

        It takes denials, with ``allowed`` all verdicts, and of these the first and every ``one_in``-th after it. Close it when it
        is of no more use. Raises ``TooManyTapsError``, and ``ValueError`` for what ``TapSettings`` refuses.
        """
        return self._engine.watch(TapSettings(events_max=events_max, one_in=one_in, allowed=allowed))

    def count_cut(self, update: RulesetUpdate, now_ns: int) -> int:
        """Return how many live flows that pass now would not pass any more if ``update`` were applied; changes nothing.

        Flows of servers or addresses that it takes away count, revoked ones do not. Raises ``BaseVersionError``.
        """
        return self._engine.count_cut(update, now_ns)

    def counting_cut(self, update: RulesetUpdate, now_ns: int) -> Iterator[int]:
        """Count as ``count_cut`` does, but in slices of a few milliseconds: yields the count so far, last the answer.

        Anything may be asked of the firewall in between; what is counted against is the ruleset of the call.
        """
        return self._engine.counting_cut(update, now_ns)

    def stats(self, now_ns: int) -> Stats:
        """Return the figures of this moment. Takes time in proportion to the flows."""
        return self._engine.stats(now_ns)

    def counting_stats(self, now_ns: int) -> Iterator[Stats | None]:
        """Return the figures as ``stats`` does, but in slices of some 20 microseconds: yields None, and last the figures.

        Anything may be asked of the firewall in between; a flow is counted as it is when it is reached.
        """
        return self._engine.counting_stats(now_ns)

    def rule_counts(self) -> dict[str, RuleCount]:
        """Return, in ascending order of id, what each rule in force has let through since the engine started, if anything.

        Takes time in proportion to the rules.
        """
        return self._engine.rule_counts()
