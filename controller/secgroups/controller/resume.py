"""How a stream begins: what an agent that comes back holds is compared with its span, and only what differs is sent.

What it holds can be built on if the store went through the very state that it names, and that point is not so old that the change
log has forgotten what came after it. Versions are revisions, so on one history equal versions are equal objects. Where anything is
in doubt the agent is sent everything, and keeps what it has until that has come whole.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secgroups.controller.digest import HeldVersions
from secgroups.controller.stream_messages import Hello, Kind, ObjectKey, SyncMode

if TYPE_CHECKING:
    from secgroups.controller.in_force import RevisionLog
    from secgroups.controller.interest import Interest
    from secgroups.controller.marked import MarkedAgents
    from secgroups.controller.ready_steps import ReadySteps
    from secgroups.controller.set_history import SetHistory
    from secgroups.controller.state import State
    from secgroups.controller.store.interface import Lineage
    from secgroups.controller.stream_objects import StreamObjects

# Sets before what refers to them, removals the other way round.
_RANKS = {Kind.SET: 0, Kind.GROUP: 1, Kind.SERVER: 2}


@dataclass(frozen=True, slots=True)
class Since:
    """When an object became different from what the agent has. ``commit_us`` is 0 if that is not known."""

    revision: int
    commit_us: int


Marks = OrderedDict[ObjectKey, Since]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where channels take from what they send."""

    state: State
    lineage: Lineage
    interest: Interest
    objects: StreamObjects
    history: SetHistory
    log: RevisionLog
    marked: MarkedAgents
    ready_steps: ReadySteps


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The beginning of a stream: ``marked`` may differ from ``held``, which the agent has. ``reason``: why it is no better mode."""

    mode: SyncMode
    reason: str
    held: HeldVersions
    marked: Marks


def opening(hello: Hello, source: Source) -> Opening:
    """Return how to bring an agent up to date. Takes time in proportion to its span and what it holds."""
    doubt = _strangeness(hello, source)
    # To add up a digest takes a microsecond an object: it is done of what may be of use.
    held = HeldVersions({} if doubt else hello.held)
    doubt = doubt or _doubt(hello, held, source)
    if doubt:
        since = Since(1, 0)
        everything: Marks = OrderedDict((key, since) for key in source.interest.span(hello.agent_id))
        return Opening(mode=SyncMode.SNAPSHOT, reason=doubt, held=HeldVersions(), marked=everything)
    differing = _differing(hello.agent_id, held, source)
    marked, unexplained = _explained(hello, differing, source.log)
    if not source.log.knows(hello.applied_revision + 1):
        reason = f"what changed since revision {hello.applied_revision} is not in memory" if differing else ""
    elif unexplained:
        kind, name = unexplained[0]
        reason = f"{kind.word} {name} differs without a change since revision {hello.applied_revision}"
    else:
        reason = ""
    mode = SyncMode.DIFFERENCE if reason else SyncMode.RESUMED
    return Opening(mode=mode, reason=reason, held=held, marked=marked)


def is_on_history(hello: Hello, source: Source) -> bool:
    """Whether the store went through the state that an agent names."""
    return not _strangeness(hello, source)


def _strangeness(hello: Hello, source: Source) -> str:
    """Say why the state that an agent names is none of this store; empty if it is one."""
    lineage, revision = source.lineage, hello.applied_revision
    if not hello.store_epoch:
        return "the agent holds nothing that it trusts"
    if hello.store_epoch != lineage.store_epoch:
        return f"what it holds is of another store ({hello.store_epoch})"
    if not hello.timeline_id:
        return "it does not say under which timeline it was told what it holds"
    if revision > source.state.revision:
        return f"it is ahead of the store: at revision {revision} of {source.state.revision}"
    if not lineage.covers(hello.timeline_id, revision):
        return f"revision {revision} of timeline {hello.timeline_id} is not in the past of this store"
    return ""


def _doubt(hello: Hello, held: HeldVersions, source: Source) -> str:
    """Say why what an agent holds of this store can't be built on; empty if it can."""
    if held.digest != hello.state_digest:
        return "the digest that it states is not that of what it lists"
    if max(hello.held.values(), default=0) > hello.applied_revision:
        return f"it lists what came after revision {hello.applied_revision}"
    compacted = source.lineage.compacted_revision
    if hello.applied_revision < compacted:
        return f"the change log begins after revision {compacted}, it is at {hello.applied_revision}"
    return ""


def _differing(agent_id: str, held: HeldVersions, source: Source) -> list[ObjectKey]:
    interest, find_version = source.interest, source.objects.find_version
    differing = [key for key in interest.span(agent_id) if find_version(key) != held.find(key)]
    return differing + [key for key in held if not interest.wants(agent_id, key)]


def _explained(hello: Hello, differing: list[ObjectKey], log: RevisionLog) -> tuple[Marks, list[ObjectKey]]:
    """Return since when each object differs, as far as the log says, and those of which it says nothing."""
    marked: Marks = OrderedDict((key, Since(hello.applied_revision + 1, 0)) for key in differing)
    if not marked:
        return marked, []
    explained: set[ObjectKey] = set()
    for touched in log.since(hello.applied_revision):
        if hello.agent_id in touched.agent_ids:
            for key in touched.keys & marked.keys():
                explained.add(key)
                marked[key] = touched.commits[0]
    return marked, [key for key in differing if key not in explained]


def in_order(marked: Marks, agent_id: str, interest: Interest) -> Marks:
    """Return the marks in the order in which objects are sent: nothing comes before what it refers to, or goes before what does."""

    def rank(mark: tuple[ObjectKey, Since]) -> int:
        place = _RANKS[mark[0][0]]
        return place if interest.wants(agent_id, mark[0]) else 5 - place

    return OrderedDict(sorted(marked.items(), key=rank)) if len(marked) > 1 else marked
