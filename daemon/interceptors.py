"""The interceptor around every RPC: one canonical log line, and errors as statuses with details."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from daemon.durations import duration
from daemon.ended_call import EndedCall
from daemon.errors import DOMAIN, Reason, SidecarError
from daemon.wire import parse
from mlx_sidecar.v1 import sidecar_pb2

MAX_MESSAGE = 1500
"""Characters of a message: gRPC refuses trailers of more than 8 KiB, and the text is in them three times."""

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

_SERVICE = sidecar_pb2.DESCRIPTOR.services_by_name["SidecarService"]
_OURS = f"/{_SERVICE.full_name}/"
_REQUESTS = {f"{_OURS}{method.name}": GetMessageClass(method.input_type) for method in _SERVICE.methods}
_QUIET = _OURS + "Stats"
"""Polled all day; logged at debug level."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """
    Wraps the handlers of the service.

    Args:
        on_cancel: Called when a client cancelled its call.
        on_end: Called at the end of each call, but for a Stats that succeeds.
    """

    def __init__(self, on_cancel: Callable[[], None], on_end: Callable[[EndedCall], None] = lambda _: None) -> None:
        self._on_cancel = on_cancel
        self._on_end = on_end

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of a call, wrapped."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith(_OURS):
            return handler  # health and reflection are polled all day and keep their own ways
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(details.method, handler.unary_stream),
                None,
                handler.response_serializer,
            )
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(details.method, handler.unary_unary),
                None,
                handler.response_serializer,
            )
        return handler

    def _streaming(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        # Written rather than yielded: a cancelled call then ends here and now, not when a generator is collected.
        async def handle(data: bytes, context: Context) -> None:
            async with self._observed(method, context):
                request = await _parsed(data, method)
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        await context.write(response)

        return handle

    def _unary(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def handle(data: bytes, context: Context) -> Any:
            async with self._observed(method, context):
                return await behaviour(await _parsed(data, method), context)

        return handle

    @asynccontextmanager
    async def _observed(self, method: str, context: Context) -> AsyncIterator[None]:
        clear_contextvars()
        bind_contextvars(rpc=method.rpartition("/")[2])
        end = partial(self._ended, method, time.monotonic(), context)
        try:
            yield
        except asyncio.CancelledError:
            self._on_cancel()
            remaining = context.time_remaining()
            late = remaining is not None and remaining <= 0
            end("DEADLINE_EXCEEDED" if late else "CANCELLED")
            raise
        except SidecarError as error:
            end(code_name(error), reason=str(error.reason), error=_loggable(error))
            await _abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            error_id = secrets.token_hex(6)
            log.exception("unexpected error", error_id=error_id)
            hidden = SidecarError(
                Reason.INTERNAL,
                f"an unexpected error occurred; the daemon's log has it under id {error_id}",
                metadata={"error_id": error_id, "type": type(error).__name__},
            )
            end(code_name(hidden), error_id=error_id)
            await _abort(context, hidden)
        else:
            end("OK")

    def _ended(self, method: str, began: float, context: Context, code: str, **fields: str) -> None:
        duration_s = time.monotonic() - began
        quiet = code == "OK" and method == _QUIET
        write = log.debug if quiet else log.info
        write("rpc", code=code, duration_s=round(duration_s, 6), **fields)
        if not quiet:
            headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            self._on_end(EndedCall(method, code, duration_s, headers, get_contextvars() | fields))


async def _parsed(data: bytes, method: str) -> Message:
    """Return a call's request. A large one takes a moment at each of its stages; between them others get theirs."""
    request = await parse(data, _REQUESTS[method])
    await asyncio.sleep(0)
    return request


def code_name(error: SidecarError) -> str:
    """Return the name of an error's gRPC code."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == error.code)


def status(error: SidecarError) -> status_pb2.Status:
    """Return an error as google.rpc.Status with ErrorInfo and, where they help, BadRequest and RetryInfo."""
    message = error.message if len(error.message) <= MAX_MESSAGE else error.message[: MAX_MESSAGE - 1] + "…"
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after)))
    return status_pb2.Status(code=error.code, message=message, details=[_any(detail) for detail in details])


async def _abort(context: Context, error: SidecarError) -> None:
    """End a call with an error; clients that retry by themselves learn when to."""
    answer = rpc_status.to_status(status(error))
    metadata = list(answer.trailing_metadata)
    if error.retry_after is not None:
        metadata.append(("grpc-retry-pushback-ms", str(int(1000 * error.retry_after))))
    await context.abort(answer.code, answer.details, tuple(metadata))


def _any(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _loggable(error: SidecarError) -> str:
    """Return what the log may show: chat templates and grammars choose their own words, and may quote the request."""
    quotes = error.field == "chat" or error.field.startswith("response_format")
    return f"the {error.field} is refused" if quotes else error.message
