"""LimitService: how many of each a project may have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from heapq import nsmallest

from secgroups.controller import limit_operations
from secgroups.controller.convert import Checks, page_size_of, page_start, page_token, project_of, timestamp
from secgroups.controller.core import Core
from secgroups.controller.errors import InvalidError
from secgroups.controller.limits import LIMIT_NAMES, LimitOverrides, Limits, check_limit_value
from secgroups.controller.model import etag_of
from secgroups.controller.services.mutation import Context, mutate
from secgroups.v1 import limit_service_pb2 as pb
from secgroups.v1.limit_service_pb2_grpc import LimitServiceServicer

_KINDS = {pb.LimitKind.Value(f"LIMIT_KIND_{name.upper()}"): name for name in LIMIT_NAMES}


class LimitService(LimitServiceServicer):
    """The limits of projects; ``defaults`` count where nothing is overridden."""

    def __init__(self, core: Core, defaults: Limits) -> None:
        self._core = core
        self._defaults = defaults

    async def GetLimits(self, request: pb.GetLimitsRequest, context: Context) -> pb.GetLimitsResponse:
        project = project_of(request)
        overrides = self._core.state.find_limit_overrides(project)
        limits = self._with_use(self._limits_message(project, overrides))
        return pb.GetLimitsResponse(limits=limits, revision=self._core.state.revision)

    async def UpdateLimits(self, request: pb.UpdateLimitsRequest, context: Context) -> pb.UpdateLimitsResponse:
        checks = Checks()
        project = checks.take(project_of, request)
        operation = partial(
            limit_operations.update_limits,
            project=project,
            changes=checks.take(_changes_of, request) or {},
            etag=request.etag,
        )
        response = await mutate(
            self._core,
            request,
            context,
            checks,
            operation,
            pb.UpdateLimitsResponse,
            lambda overrides, revision: pb.UpdateLimitsResponse(
                limits=self._limits_message(request.project, overrides), revision=revision
            ),
        )
        self._with_use(response.limits)
        return response

    async def ListLimitOverrides(self, request: pb.ListLimitOverridesRequest, context: Context) -> pb.ListLimitOverridesResponse:
        query = ("limit overrides",)
        start = page_start(query, request.page_token)
        size = page_size_of(request.page_size)
        page = nsmallest(size + 1, self._core.state.limit_overrides(start), key=lambda each: each.project)
        return pb.ListLimitOverridesResponse(
            projects=[limit_overrides_message(each) for each in page[:size]],
            next_page_token=page_token(query, page[size - 1].project) if len(page) > size else "",
            revision=self._core.state.revision,
        )

    def _limits_message(self, project: str, overrides: LimitOverrides | None) -> pb.ProjectLimits:
        """Return limits without their use: this may run in the writer's thread, which must not read the state."""
        own = overrides.values if overrides else {}
        message = pb.ProjectLimits(project=project, etag=etag_of(overrides.revision if overrides else 0))
        for kind, name in _KINDS.items():
            default = getattr(self._defaults, name)
            message.limits.add(
                kind=kind,
                most=own.get(name, default),
                default_most=default,
                override_most=own.get(name),
            )
        return message

    def _with_use(self, message: pb.ProjectLimits) -> pb.ProjectLimits:
        use = limit_operations.use_of(self._core.state, message.project)
        for limit in message.limits:
            found = use[_KINDS[limit.kind]]
            limit.used, limit.used_by = found.count, found.by
        return message


def limit_overrides_message(overrides: LimitOverrides) -> pb.LimitOverrides:
    """Return overrides as the API shows them."""
    own = overrides.values
    return pb.LimitOverrides(
        project=overrides.project,
        overrides=[pb.LimitOverride(kind=kind, most=own[name]) for kind, name in _KINDS.items() if name in own],
        updated=timestamp(overrides.updated_us),
    )


def _changes_of(request: pb.UpdateLimitsRequest) -> Mapping[str, int | None]:
    if not request.changes:
        raise InvalidError("changes", "must not be empty; name at least one limit")
    if len(request.changes) > len(_KINDS):
        raise InvalidError("changes", f"has {len(request.changes)} entries, there are {len(_KINDS)} limits")
    wanted: dict[str, int | None] = {}
    for index, change in enumerate(request.changes):
        name = _KINDS.get(change.kind)
        if name is None:
            known = ", ".join(pb.LimitKind.Name(kind) for kind in _KINDS)
            raise InvalidError(f"changes[{index}].kind", f"must be one of {known}")
        if name in wanted:
            raise InvalidError(f"changes[{index}].kind", f"{name} stands twice")
        wanted[name] = check_limit_value(name, change.most, f"changes[{index}].most") if change.HasField("most") else None
    return wanted
