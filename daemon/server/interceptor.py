"""The gRPC interceptor around every RPC: receives the request, writes one log line, turns errors into statuses."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from daemon.server.arrivals import Arrival, Arrivals
from daemon.server.call_record import CallRecord
from daemon.server.request_decoder import parse
from daemon.shared.durations import duration
from daemon.shared.error_frames import clear_frames
from daemon.shared.errors import DOMAIN, Reason, SidecarError, invalid
from daemon.shared.log_fields import FIELDS, refusal
from mlx_sidecar.v1 import sidecar_pb2

MAX_MESSAGE = 1500
"""Characters of an error message: gRPC refuses trailers above 8 KiB, and the text is in them three times."""
MOST_PUSHBACK_SECONDS = 30.0
"""
Longest time after which gRPC of a client tries again by itself. Over a longer one the caller decides: gRPC would wait
without a word, or until a deadline that hides the reason.
"""
_NO_RETRY = "-1"

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

_SERVICE = sidecar_pb2.DESCRIPTOR.services_by_name["SidecarService"]
_OURS = f"/{_SERVICE.full_name}/"
_DESCRIPTORS = {f"{_OURS}{method.name}": method.input_type for method in _SERVICE.methods}
"""Descriptors of the requests of our service: their fields are counted."""
_QUIET = _OURS + "Stats"
"""Logged at debug level, because monitors poll it all day."""

END_SECONDS = 0.1
"""A call that was cancelled before it sent its request ends within this time; any other lacks its request."""


@dataclass(slots=True)
class _Call:
    """
    One call while it is open.

    Attributes:
        method: Full name of its RPC.
        context: gRPC's context of the call.
        arrived: Whether its request is there, or was refused.
    """

    method: str
    context: Context
    arrived: bool = False

    @property
    def ours(self) -> bool:
        """Whether it calls our service. Health and reflection are polled all day and leave no log lines."""
        return self.method.startswith(_OURS)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """
    Wraps the handlers of all services.

    gRPC would receive the request of a unary call before it calls the handler, without a limit of time. So all handlers
    are registered as handlers of request streams, which is the same on the wire, and the request is received here.

    Args:
        arrivals: Receives requests, within limits.
        on_cancel: Called when a client cancelled its call.
        on_end: Called at the end of each call of our service, except a Stats call that succeeds.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        on_cancel: Callable[[], None],
        on_end: Callable[[CallRecord], None] = lambda _: None,
    ) -> None:
        self._arrivals = arrivals
        self._on_cancel = on_cancel
        self._on_end = on_end

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of a call, wrapped."""
        handler = await continuation(details)
        if handler is None:
            return None
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(details.method, handler), None, handler.response_serializer
            )
        wrapped = self._streaming if handler.unary_stream else self._conversing
        return grpc.stream_stream_rpc_method_handler(
            wrapped(details.method, handler), None, handler.response_serializer
        )

    def _unary(self, method: str, handler: Any) -> Callable[..., Any]:
        async def handle(_requests: Any, context: Context) -> Any:
            async with self._open(method, context) as (call, arrival):
                return await handler.unary_unary(await _request(call, arrival, handler), context)

        return handle

    def _streaming(self, method: str, handler: Any) -> Callable[..., Any]:
        async def handle(_requests: Any, context: Context) -> None:
            async with self._open(method, context) as (call, arrival):
                request = await _request(call, arrival, handler)
                await _write(handler.unary_stream(request, context), context)

        return handle

    def _conversing(self, method: str, handler: Any) -> Callable[..., Any]:
        decode = handler.request_deserializer

        async def handle(_requests: Any, context: Context) -> None:
            async with self._open(method, context) as (call, arrival):

                async def requests() -> AsyncIterator[Any]:
                    while (data := await arrival.receive(context.read)) is not grpc.aio.EOF:
                        call.arrived = True
                        yield await parse(data, decode, _DESCRIPTORS.get(method), arrival.most_bytes)

                await _write(handler.stream_stream(requests(), context), context)

        return handle

    @asynccontextmanager
    async def _open(self, method: str, context: Context) -> AsyncIterator[tuple[_Call, Arrival]]:
        call = _Call(method, context)
        async with self._observed(call):
            with self._arrivals.call(method) as arrival:
                yield call, arrival

    @asynccontextmanager
    async def _observed(self, call: _Call) -> AsyncIterator[None]:
        clear_contextvars()
        bind_contextvars(rpc=call.method.rpartition("/")[2])
        end = partial(self._ended, call, time.monotonic())
        try:
            yield
        except asyncio.CancelledError:
            remaining = call.context.time_remaining()
            late = remaining is not None and remaining <= 0
            if call.ours and (call.arrived or late):
                self._on_cancel()
            end("DEADLINE_EXCEEDED" if late else "CANCELLED")
            raise
        except SidecarError as error:
            call.arrived = True  # enough of it to be refused
            end(code_name(error), **refusal(error))
            clear_frames(error)
            await _abort(call.context, _named(error))
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            error_id = secrets.token_hex(6)
            log.exception("unexpected_error", error_id=error_id)
            hidden = SidecarError(
                Reason.INTERNAL,
                f"an unexpected error occurred; the daemon's log has it under id {error_id}",
                metadata={"error_id": error_id, "type": type(error).__name__},
            )
            call.arrived = True
            end(code_name(hidden), error_id=error_id)
            clear_frames(error)
            await _abort(call.context, _named(hidden))
        else:
            end("OK")

    def _ended(self, call: _Call, began: float, code: str, **fields: Any) -> None:
        if not call.ours:
            return
        duration_s = time.monotonic() - began
        # A call that was cancelled before its request arrived leaves no line: they can come by the thousand.
        quiet = (code == "OK" and call.method == _QUIET) or (code == "CANCELLED" and not call.arrived)
        write = log.debug if quiet else log.info
        write("rpc", code=code, duration_s=round(duration_s, 6), **fields)
        if not quiet:
            metadata = call.context.invocation_metadata() or ()
            headers = {key: value for key, value in metadata if isinstance(value, str)}
            self._on_end(CallRecord(call.method, code, duration_s, headers, get_contextvars() | fields))


def _named(error: SidecarError) -> SidecarError:
    """Return an error with the id that its request has in the log, unless the id is what was refused."""
    request_id = get_contextvars().get("request_id", "")
    if not FIELDS["request_id"](request_id):
        return error
    named = error.again()
    named.metadata = {**error.metadata, "request_id": request_id}
    return named


async def _request(call: _Call, arrival: Arrival, handler: Any) -> Any:
    """Receive and decode the request of a call."""
    data = await arrival.receive(call.context.read)
    if data is grpc.aio.EOF:
        await asyncio.sleep(END_SECONDS)  # a cancellation is seen a moment after the end of the stream
        raise invalid("request", "is missing")
    call.arrived = True
    return await parse(data, handler.request_deserializer, _DESCRIPTORS.get(call.method), arrival.most_bytes)


async def _write(responses: Any, context: Context) -> None:
    """
    Write the responses that a handler yields. A handler that returns an awaitable writes them itself.

    The interceptor writes, rather than yields: a cancelled call then ends at once, not when its generator is collected.
    """
    if isawaitable(responses):
        await responses
        return
    async with aclosing(responses):
        async for response in responses:
            try:
                await context.write(response)
            except grpc.aio.InternalError:
                # Its client is gone: gRPC tells a write that waits sooner than the call, which it is about to cancel.
                raise asyncio.CancelledError from None


def code_name(error: SidecarError) -> str:
    """Return the name of an error's gRPC code."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == error.code)


def status(error: SidecarError) -> status_pb2.Status:
    """Return an error as google.rpc.Status with ErrorInfo, and with BadRequest and RetryInfo where they apply."""
    message = error.message if len(error.message) <= MAX_MESSAGE else error.message[: MAX_MESSAGE - 1] + "…"
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after)))
    return status_pb2.Status(code=error.code, message=message, details=[_any(detail) for detail in details])


async def _abort(context: Context, error: SidecarError) -> None:
    """End a call with an error. The pushback tells clients with a retry policy when to try again."""
    answer = rpc_status.to_status(status(error))
    metadata = list(answer.trailing_metadata)
    if error.retry_after is not None:
        metadata.append(("grpc-retry-pushback-ms", _pushback(error.retry_after, context.time_remaining())))
    await context.abort(answer.code, answer.details, tuple(metadata))


def _pushback(seconds: float, remaining: float | None) -> str:
    """Return the milliseconds after which gRPC of a client tries again by itself, or that it is not to."""
    most = MOST_PUSHBACK_SECONDS if remaining is None else min(MOST_PUSHBACK_SECONDS, remaining)
    return str(int(1000 * seconds)) if seconds <= most else _NO_RETRY


def _any(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
