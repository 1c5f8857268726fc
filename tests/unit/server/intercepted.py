"""Calls through the interceptor without gRPC: a handler, the context of its call, and the status that a client sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from daemon.server.arrivals import Arrivals, Lane, Way
from daemon.server.call_record import CallRecord
from daemon.server.field_checks import MAX_REQUEST_BYTES
from daemon.server.interceptor import CallInterceptor

METHOD = "/mlx_sidecar.v1.SidecarService/Generate"
QUIET = "/mlx_sidecar.v1.SidecarService/Stats"
CHECK = "/grpc.health.v1.Health/Check"
SMALL = 100
SECRET = "the caller's prompt"


class FakeContext:
    """A gRPC context that records writes and the abort."""

    def __init__(self, remaining: float | None = None, request: Any = b"") -> None:
        self._request = request
        self.written: list[Any] = []
        self.aborted: tuple[Any, str, tuple[tuple[str, Any], ...]] | None = None
        self._remaining = remaining

    async def read(self) -> Any:
        """Return a request, raise its error, or return the end of the stream."""
        if isinstance(self._request, BaseException):
            raise self._request
        return self._request

    async def write(self, message: Any) -> None:
        """Keep a response."""
        self.written.append(message)

    async def abort(self, code: Any, details: str, trailing_metadata: Any = ()) -> None:
        """End the call."""
        self.aborted = (code, details, tuple(trailing_metadata))
        raise grpc.aio.AbortError

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Return the headers that came with the call."""
        return (("traceparent", "00-1"), ("some-bin", b"1"))

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline."""
        return self._remaining

    def rich(self) -> status_pb2.Status:
        """Return the status that a client would see."""
        assert self.aborted is not None
        code, details, metadata = self.aborted
        call = SimpleNamespace(code=lambda: code, details=lambda: details, trailing_metadata=lambda: metadata)
        rich = rpc_status.from_call(call)
        assert rich is not None
        return rich


async def serve(
    behaviour: Callable[..., Any],
    context: FakeContext,
    *,
    streaming: bool = True,
    method: str = METHOD,
    on_end: Callable[[CallRecord], None] = lambda _: None,
) -> tuple[Any, int]:
    """Call a handler through the interceptor; return its answer, and how often a cancellation was counted."""
    cancelled = []
    make = grpc.unary_stream_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler

    async def continuation(_: Any) -> Any:
        return make(behaviour, request_deserializer=lambda data: data)

    lane = Lane(places=1)
    sizes = {METHOD: MAX_REQUEST_BYTES, QUIET: SMALL, CHECK: SMALL}
    arrivals = Arrivals({name: Way(lane, size, 1) for name, size in sizes.items()})
    interceptor = CallInterceptor(arrivals, lambda: cancelled.append(1), on_end)
    details: Any = SimpleNamespace(method=method, invocation_metadata=())
    handler: Any = await interceptor.intercept_service(continuation, details)
    wrapped = handler.stream_stream if streaming else handler.stream_unary
    answer = None
    with suppress(grpc.aio.AbortError, asyncio.CancelledError):
        answer = await wrapped(None, context)
    return answer, len(cancelled)


def raising(error: BaseException) -> Callable[..., AsyncIterator[str]]:
    """Return a streaming handler that answers once and then fails."""

    async def behaviour(_request: Any, _context: Any) -> AsyncIterator[str]:
        yield "first"
        raise error

    return behaviour


def detail(rich: status_pb2.Status, kind: Any) -> Any:
    """Return a detail of a status."""
    for packed in rich.details:
        if packed.Is(kind.DESCRIPTOR):
            found = kind()
            packed.Unpack(found)
            return found
    return None
