"""AuditService: who changed what."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from secgroups.controller.audit import FOR_ADMINS, Wanted, actor_of, remotes_of
from secgroups.controller.convert import group_message, page_start, page_token, rule_message, server_message, timestamp
from secgroups.controller.core import Core
from secgroups.controller.errors import InvalidError, PreconditionError, StoreUnavailableError
from secgroups.controller.limits import LimitOverrides
from secgroups.controller.model import Change, Group, Object, Rule, Server
from secgroups.controller.services.credential_messages import certificate_message, revocation_message, token_message
from secgroups.controller.services.limits import limit_overrides_message
from secgroups.controller.services.mutation import Context
from secgroups.controller.trust.kept import AgentCertificate, AgentRevocation, Token
from secgroups.controller.trust.principals import caller
from secgroups.v1 import audit_service_pb2 as pb
from secgroups.v1.audit_service_pb2_grpc import AuditServiceServicer

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
# How much of the log one call reads: a page that finds little ends early and is gone on with.
READ_CHANGES = 1_000
READ_CHANGES_MAX = 50_000
WATCHERS_MAX = 1_000
# What the trail of a rule is looked for in; rules are changed a few times in their lives.
RULE_CHANGES_MAX = 1_000


class AuditService(AuditServiceServicer):
    """The change log of ``core``."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._watchers: set[asyncio.Event] = set()
        self._closed = False
        self._unlisten = core.listen(self._tell)

    def close(self) -> None:
        """End the watches."""
        self._closed = True
        self._unlisten()
        self._tell(())

    def _tell(self, _: Sequence[Change]) -> None:
        for news in self._watchers:
            news.set()

    async def ListChanges(self, request: pb.ListChangesRequest, context: Context) -> pb.ListChangesResponse:
        if not 0 <= request.page_size <= PAGE_SIZE_MAX:
            raise InvalidError("page_size", f"is {request.page_size}, must be 0 to {PAGE_SIZE_MAX}")
        wanted = await self._wanted(request)
        since_us = _microseconds(request) if request.HasField("since") else 0
        query = ("changes", wanted.project, wanted.group_id, wanted.rule_id, wanted.server_id, wanted.token_id, str(since_us))
        start = page_start(query, request.page_token)
        before = _place_of(start) if start else None
        size, read = request.page_size or PAGE_SIZE_DEFAULT, 0
        found: list[Change] = []
        while len(found) < size and read < READ_CHANGES_MAX:
            rows = await self._core.read_log_back(wanted.project, before, READ_CHANGES, wanted.without)
            read += len(rows)
            for change, place in rows:
                if change.at_us < since_us:
                    return _page(found, "", self._core.compacted_revision)
                before = place
                if wanted.covers(change):
                    found.append(change)
                    if len(found) == size:
                        break
            if len(rows) < READ_CHANGES and len(found) < size:
                return _page(found, "", self._core.compacted_revision)
        token = page_token(query, f"{before[0]}.{before[1]}") if before else ""
        return _page(found, token, self._core.compacted_revision)

    async def WatchChanges(self, request: pb.WatchChangesRequest, context: Any) -> None:  # type: ignore[override]
        """Write to ``context``: whoever reads slowly is behind in the log, and costs no memory."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise StoreUnavailableError(f"{WATCHERS_MAX} watchers of changes are open, the most allowed; try again later")
        known = request.after_revision or self._core.state.revision
        if known > self._core.state.revision:
            raise InvalidError("after_revision", f"is {known}, the controller is at {self._core.state.revision}")
        wanted = await self._wanted(request)
        news = asyncio.Event()
        self._watchers.add(news)
        try:
            while not self._closed:
                news.clear()
                while known < self._core.state.revision:
                    page = await self._core.read_log(known, READ_CHANGES)
                    if page.gap:
                        forgotten = self._core.compacted_revision
                        raise PreconditionError(
                            "after_revision",
                            f"changes up to revision {forgotten} are forgotten; watch after that one, and list first",
                        )
                    known = page.revision
                    await self._send(context, [change for change in page.changes if wanted.covers(change)])
                await news.wait()
        finally:
            self._watchers.discard(news)
        raise StoreUnavailableError("the controller is stopping; watch again", retry_after_s=self._core.returns.next_s())

    @staticmethod
    async def _send(context: Any, changes: Sequence[Change]) -> None:
        for _, same in groupby(changes, key=lambda change: change.revision):
            await context.write(pb.WatchChangesResponse(changes=[_message(change) for change in same]))

    async def _wanted(self, request: pb.ListChangesRequest | pb.WatchChangesRequest) -> Wanted:
        given, project = request.filter, request.project
        principal = caller.get()
        wanted = Wanted(
            project=project,
            group_id=given.group_id,
            rule_id=given.rule_id,
            server_id=given.server_id,
            token_id=given.token_id,
            without=frozenset() if principal is None or principal.is_admin else FOR_ADMINS,
        )
        if not given.rule_id:
            return wanted
        changes = await self._core.read_log_of(given.rule_id, RULE_CHANGES_MAX)
        own = [change for change in changes if wanted.covers(change)]
        now = self._core.state.find_rule(project, given.rule_id) if project else None
        return replace(wanted, remotes=remotes_of(given.rule_id, own, now))


def _microseconds(request: pb.ListChangesRequest) -> int:
    try:
        return request.since.ToMicroseconds()
    except ValueError as error:
        raise InvalidError("since", f"is no time: {error}") from None


def _place_of(text: str) -> tuple[int, int]:
    revision, _, seq = text.partition(".")
    try:
        return int(revision), int(seq)
    except ValueError:
        raise InvalidError("page_token", "is not one of this list") from None


def _page(changes: Sequence[Change], token: str, forgotten: int) -> pb.ListChangesResponse:
    return pb.ListChangesResponse(
        changes=[_message(change) for change in changes], next_page_token=token, forgotten_revision=forgotten
    )


def _message(change: Change) -> pb.Change:
    token_id, peer = actor_of(change)
    message = pb.Change(revision=change.revision, time=timestamp(change.at_us), token_id=token_id, peer=peer)
    if change.before is not None:
        message.before.CopyFrom(_object(change.before))
    if change.after is not None:
        message.after.CopyFrom(_object(change.after))
    return message


def _object(thing: Object) -> pb.ChangedObject:
    match thing:
        case Group():
            return pb.ChangedObject(group=group_message(thing, rule_count=0, server_count=0))
        case Rule():
            return pb.ChangedObject(rule=rule_message(thing))
        case Server():
            return pb.ChangedObject(server=server_message(thing))
        case LimitOverrides():
            return pb.ChangedObject(limits=limit_overrides_message(thing))
        case Token():
            return pb.ChangedObject(token=token_message(thing))
        case AgentCertificate():
            return pb.ChangedObject(certificate=certificate_message(thing))
        case AgentRevocation():
            return pb.ChangedObject(revocation=revocation_message(thing))
