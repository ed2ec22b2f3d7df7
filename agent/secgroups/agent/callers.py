"""Who may ask this agent where it answers with TLS: operators, and the agent itself. TLS has verified what they show."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import grpc
from cryptography import x509

OPERATOR_URI = "secgroups://operator/"
AGENT_URI = "secgroups://agent/"


class Callers(grpc.aio.ServerInterceptor):
    """Lets in who shows a certificate of an operator, or of the agent ``agent_id``; PERMISSION_DENIED for all others."""

    def __init__(self, agent_id: str) -> None:
        self._own_uri = AGENT_URI + quote(agent_id, safe="")
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a call, behind the question who calls."""
        method = str(handler_call_details.method)
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._wrapped[method] = self._guarded(handler)
        return self._wrapped[method]

    def _guarded(self, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        forms = {
            (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        }
        call, make = forms[handler.request_streaming, handler.response_streaming]
        guarded = partial(self._generated if inspect.isasyncgenfunction(call) else self._called, call)
        made: grpc.RpcMethodHandler[Any, Any] = make(
            guarded, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )
        return made

    async def _called(self, call: Any, request: Any, context: Any) -> Any:
        await self._check(context)
        answer = call(request, context)
        return await answer if inspect.isawaitable(answer) else answer

    async def _generated(self, call: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._check(context)
        async for answer in call(request, context):
            yield answer

    async def _check(self, context: Any) -> None:
        shown = context.auth_context().get("x509_pem_cert")
        if not shown or not self._may_ask(x509.load_pem_x509_certificate(shown[0])):
            message = "this agent answers operators (sgctl, with a token of role admin) and itself; the certificate is another's"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, message)

    def _may_ask(self, certificate: x509.Certificate) -> bool:
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return False
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return len(uris) == 1 and (uris[0].startswith(OPERATOR_URI) or uris[0] == self._own_uri)
