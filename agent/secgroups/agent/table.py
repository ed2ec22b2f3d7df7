"""The flow table: everything an agent remembers about traffic, all of it bounded, and what goes when there is no room.

Making room for a flow of a server that is at its own share: an expired flow of its own goes, else its unanswered one with the
oldest opening, else there is no room. When the whole table is full: expired flows go; else, for a server that holds fewer
than flows_max / servers, the other server that holds the most gives its oldest unanswered flow or, if it has none, its
longest idle answered one; else the oldest unanswered flow of the same server, else of any other; else there is no room.

Where the contract is silent:

- The share of a server is a hard bound, also for a server that holds fewer than flows_max / servers.
- A server below that does not give up an unanswered flow of its own: it could otherwise never have two handshakes under way while
  another server holds the table.
- Of two servers that hold equally many, or whose oldest flows were opened at the same time (to 17 ms), the one with the lower id
  gives; of two flows of a server that are equal in this, the one that was opened first.
- ``servers`` counts the servers that the agent guards, with traffic or without.
- A successor with a smaller table keeps the answered flows, latest seen first, then the unanswered ones, latest opened first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from secgroups.agent.effective import EffectiveRuleset
from secgroups.agent.flow import Address
from secgroups.agent.fragments import FragmentTable
from secgroups.agent.settings import EngineSettings
from secgroups.agent.tracking import NS_PER_S, Flow, FlowKey

_NEVER_NS = 1 << 63
# Ages are compared as they are kept in a compact table: openings to 17 ms, last packets to 1 ms.
OPENED_SHIFT = 24
SEEN_SHIFT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """What holds for a server now, and since which epoch."""

    ruleset: EffectiveRuleset
    epoch: int


class Share:
    """The flows of one server in the order of their opening."""

    def __init__(self) -> None:
        self.flows: dict[FlowKey, Flow] = {}
        self.unanswered: dict[FlowKey, None] = {}
        # No deadline is earlier than this: it spares looking for expired flows where none can be.
        self._earliest_ns = _NEVER_NS

    def __len__(self) -> int:
        return len(self.flows)

    def store(self, flow: Flow) -> None:
        self.flows[flow.key] = flow
        self._earliest_ns = min(self._earliest_ns, flow.deadline_ns)
        if flow.answered:
            self.unanswered.pop(flow.key, None)
        else:
            self.unanswered.setdefault(flow.key)

    def drop(self, key: FlowKey) -> None:
        del self.flows[key]
        self.unanswered.pop(key, None)

    def find_expired(self, now_ns: int) -> tuple[FlowKey, ...]:
        """Return all flows that are over."""
        if now_ns < self._earliest_ns:
            return ()
        expired = tuple(key for key, flow in self.flows.items() if flow.is_over(now_ns))
        if not expired:
            self._earliest_ns = min((flow.deadline_ns for flow in self.flows.values()), default=_NEVER_NS)
        return expired

    def find_oldest_unanswered(self) -> Flow | None:
        """Return the unanswered flow with the oldest opening."""
        key = next(iter(self.unanswered), None)
        return None if key is None else self.flows[key]

    def longest_idle(self) -> Flow:
        """Return the flow that was seen the longest ago; there is one."""
        return min(self.flows.values(), key=lambda flow: flow.seen_ns >> SEEN_SHIFT)


class FlowTable:
    """Flows, first fragments, and what they were last judged against: all that a warm restart keeps.

    At most ``flows_max`` flows, ``server_flows_max`` for one server. An engine owns its table; to hand it to a successor in
    the same boot of the machine (times are monotonic), stop asking the old engine and give the table to the new one.
    ``guarded`` says what each server's flows were last judged against, ``loose_until_ns`` until when TCP is accepted
    mid-stream.
    """

    def __init__(self, settings: EngineSettings, now_ns: int) -> None:
        self.flows_max = settings.flows_max
        self.server_flows_max = settings.server_flows_max
        self.fragments = FragmentTable(settings.fragments_max)
        self.guarded: dict[str, Guarded] = {}
        self.loose_until_ns = now_ns + settings.tcp_loose_s * NS_PER_S
        self._epoch = 0
        self._count = 0
        self._shares: dict[str, Share] = {}

    def __len__(self) -> int:
        """Return how many entries are taken, by flows that are over as well."""
        return self._count

    def held_by(self, server: str) -> int:
        """Return how many entries are taken by ``server``."""
        share = self._shares.get(server)
        return len(share) if share else 0

    def live(self, now_ns: int, server: str = "") -> Iterator[Flow]:
        """Yield the flows, or those of ``server``, that are not over at ``now_ns``: server by server, in order of opening.

        The table may change meanwhile: what goes before it is reached is not told, what comes may be missing.
        """
        for each in (server,) if server else tuple(self._shares):
            share = self._shares.get(each)
            for key in tuple(share.flows) if share else ():
                flow = self.find(key, now_ns)
                if flow is not None:
                    yield flow

    def live_of(self, servers: Iterable[str], now_ns: int) -> Iterator[Flow]:
        """Yield the flows of ``servers`` that are not over. The table may change meanwhile: each server's are those of its turn."""
        for server in servers:
            share = self._shares.get(server)
            yield from (flow for flow in tuple(share.flows.values() if share else ()) if not flow.is_over(now_ns))

    def find(self, key: FlowKey, now_ns: int) -> Flow | None:
        """Return the live flow with ``key``."""
        share = self._shares.get(key.server)
        flow = share.flows.get(key) if share else None
        return None if flow is None or flow.is_over(now_ns) else flow

    def insert(self, flow: Flow) -> None:
        """Store a flow that was just opened; an older one with the same key is gone. There must be room."""
        self.drop(flow.key)
        self._shares.setdefault(flow.key.server, Share()).store(flow)
        self._count += 1

    def replace(self, flow: Flow) -> None:
        """Store the new value of a flow that is held."""
        self._shares[flow.key.server].store(flow)

    def drop(self, key: FlowKey) -> None:
        """Remove the flow with ``key`` if there is one."""
        share = self._shares.get(key.server)
        if share is None or key not in share.flows:
            return
        share.drop(key)
        self._count -= 1
        if not share:
            del self._shares[key.server]

    def drop_addresses(self, server: str, kept: frozenset[Address]) -> int:
        """Remove the flows of ``server`` on addresses other than ``kept`` and return how many they were."""
        share = self._shares.get(server)
        gone = [key for key in share.flows if key.local not in kept] if share else []
        for key in gone:
            self.drop(key)
        return len(gone)

    def drop_server(self, server: str) -> int:
        """Forget all about ``server`` and return how many flows it had."""
        self.guarded.pop(server, None)
        self.fragments.drop_server(server)
        gone = len(self._shares.pop(server, ()))
        self._count -= gone
        return gone

    def guard(self, server: str, ruleset: EffectiveRuleset) -> bool:
        """Put ``ruleset`` in force for ``server``; return whether it is another one than before and so made a new epoch."""
        before = self.guarded.get(server)
        changed = before is None or before.ruleset != ruleset
        if before is None or changed:
            self._epoch += 1
            self.guarded[server] = Guarded(ruleset=ruleset, epoch=self._epoch)
        else:
            self.guarded[server] = Guarded(ruleset=ruleset, epoch=before.epoch)
        return changed

    def find_room(self, server: str, *, servers: int, now_ns: int) -> tuple[FlowKey, ...] | None:
        """Return the flows that have to go before ``server``, one of ``servers``, can have one more; None if it can't."""
        own = self._shares.get(server, Share())
        if len(own) >= self.server_flows_max:
            return own.find_expired(now_ns) or _victim(own.find_oldest_unanswered())
        if self._count < self.flows_max:
            return ()
        expired = tuple(key for share in self._shares.values() for key in share.find_expired(now_ns))
        if expired:
            return expired
        if len(own) * servers < self.flows_max:
            return self._taken_from_the_largest(server)
        return _victim(own.find_oldest_unanswered() or self._find_oldest_unanswered())

    def _taken_from_the_largest(self, server: str) -> tuple[FlowKey, ...] | None:
        others = [(-len(share), holder) for holder, share in self._shares.items() if holder != server]
        if not others:
            return None
        largest = self._shares[min(others)[1]]
        return _victim(largest.find_oldest_unanswered() or largest.longest_idle())

    def _find_oldest_unanswered(self) -> Flow | None:
        found = (share.find_oldest_unanswered() for share in self._shares.values())
        return min(
            (flow for flow in found if flow), key=lambda flow: (flow.opened_ns >> OPENED_SHIFT, flow.key.server), default=None
        )

    def fit(self, settings: EngineSettings, now_ns: int) -> None:
        """Take on the bounds of ``settings``; flows that no longer have room go."""
        self.flows_max, self.server_flows_max = settings.flows_max, settings.server_flows_max
        self.fragments.fit(settings.fragments_max)
        for share in tuple(self._shares.values()):
            for key in share.find_expired(now_ns):
                self.drop(key)
            self._keep_best(list(share.flows.values()), self.server_flows_max)
        self._keep_best([flow for share in self._shares.values() for flow in share.flows.values()], self.flows_max)

    def _keep_best(self, flows: list[Flow], most: int) -> None:
        flows.sort(key=lambda flow: (flow.answered, flow.seen_ns if flow.answered else flow.opened_ns))
        for flow in flows[: max(0, len(flows) - most)]:
            self.drop(flow.key)


def _victim(flow: Flow | None) -> tuple[FlowKey, ...] | None:
    return None if flow is None else (flow.key,)
