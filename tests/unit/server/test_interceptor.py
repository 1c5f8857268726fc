"""The interceptor: errors reach callers with details, unexpected exceptions do not, and each call is logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from structlog.contextvars import bind_contextvars
from structlog.testing import capture_logs

from daemon.server.arrivals import Arrivals, Lane, Way
from daemon.server.call_record import CallRecord
from daemon.server.field_checks import MAX_REQUEST_BYTES
from daemon.server.interceptor import MAX_MESSAGE, CallInterceptor, code_name, status
from daemon.shared.errors import Reason, SidecarError, invalid

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


@pytest.mark.parametrize(("given", "told"), [("req-1", "req-1"), ("two words", None), ("a" * 9000, None)])
async def test_error_has_the_id_of_the_log(given: str, told: str | None) -> None:
    """So that a caller that gave none can name the request; one that is no id is not given back."""

    async def behaviour(_request: Any, _context: Any) -> AsyncIterator[str]:
        bind_contextvars(request_id=given)
        yield "first"
        raise invalid("max_tokens", "is wrong")

    context = FakeContext()
    await serve(behaviour, context)
    info = detail(context.rich(), error_details_pb2.ErrorInfo)
    assert info.metadata.get("request_id") == told


def detail(rich: status_pb2.Status, kind: Any) -> Any:
    """Return a detail of a status."""
    for packed in rich.details:
        if packed.Is(kind.DESCRIPTOR):
            found = kind()
            packed.Unpack(found)
            return found
    return None


async def test_typed_error_has_reason_field_and_retry_delay() -> None:
    """After the responses that came before it."""
    error = SidecarError(
        Reason.QUEUE_FULL, "come later", metadata={"figure": "7"}, retry_after=1.5, field="sampling.top_p"
    )
    context = FakeContext()
    await serve(raising(error), context)
    rich = context.rich()
    assert context.written == ["first"]
    assert (rich.code, rich.message) == (code_pb2.RESOURCE_EXHAUSTED, "come later")
    info = detail(rich, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == ("QUEUE_FULL", "mlx-sidecar", {"figure": "7"})
    assert detail(rich, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1500
    violation = detail(rich, error_details_pb2.BadRequest).field_violations[0]
    assert (violation.field, violation.description) == ("sampling.top_p", "come later")


@pytest.mark.parametrize(
    ("seconds", "remaining", "pushback"),
    [
        (None, None, None),
        (0.5, None, "500"),
        (30.0, None, "30000"),
        (30.1, None, "-1"),
        (60.0, 600.0, "-1"),
        (8.0, 9.0, "8000"),
        (8.0, 7.0, "-1"),
    ],
)
async def test_clients_retry_by_themselves_only_soon(
    seconds: float | None, remaining: float | None, pushback: str | None
) -> None:
    """Over a longer time the caller decides: gRPC waits without a word, or until a deadline that hides the reason."""
    context = FakeContext(remaining)
    await serve(raising(SidecarError(Reason.ENGINE_RESTARTED, "m", retry_after=seconds)), context)
    assert context.aborted is not None
    assert dict(context.aborted[2]).get("grpc-retry-pushback-ms") == pushback


def test_empty_error_details_are_left_out() -> None:
    """No field, no BadRequest; no retry, no RetryInfo."""
    rich = status(SidecarError(Reason.NAN_LOGITS, "m"))
    assert [packed.TypeName() for packed in rich.details] == ["google.rpc.ErrorInfo"]


def test_every_reason_has_a_grpc_code() -> None:
    """By its name, too."""
    for reason in Reason:
        error = SidecarError(reason, "m")
        assert status(error).code == error.code
        assert code_name(error) == code_pb2.Code.Name(error.code)


def test_long_error_message_fits_the_trailer_limit() -> None:
    """The client would get a transport error instead of ours."""
    rich = status(invalid("model", "é" * 10_000))
    assert len(rich.message) == MAX_MESSAGE
    assert len(rich.SerializeToString()) < 8192


async def test_unexpected_exception_hides_its_text() -> None:
    """The caller gets an id, and the log has the rest under it."""
    context = FakeContext()
    with capture_logs() as logs:
        await serve(raising(ValueError(SECRET)), context)
    rich = context.rich()
    info = detail(rich, error_details_pb2.ErrorInfo)
    assert rich.code == code_pb2.INTERNAL
    assert info.reason == "INTERNAL"
    assert info.metadata["type"] == "ValueError"
    assert SECRET not in str(context.aborted)
    assert info.metadata["error_id"] in rich.message
    assert [line["event"] for line in logs] == ["unexpected_error", "rpc"]
    assert {line["error_id"] for line in logs} == {info.metadata["error_id"]}


@pytest.mark.parametrize("field", ["chat", "response_format.regex"])
async def test_template_error_is_returned_but_not_logged(field: str) -> None:
    """Its words may quote the conversation."""
    context = FakeContext()
    with capture_logs() as lines:
        await serve(raising(invalid(field, "is refused by the model's chat template: unlike 'my secret'")), context)
    assert "my secret" in context.rich().message
    assert [line["event"] for line in lines] == ["rpc"]
    assert "my secret" not in str(lines)


async def test_unary_calls_are_wrapped_as_well() -> None:
    """Answers pass, errors become statuses."""

    async def good(_request: Any, _context: Any) -> str:
        return "answer"

    async def bad(_request: Any, _context: Any) -> str:
        raise invalid("target", "is missing")

    assert await serve(good, FakeContext(), streaming=False) == ("answer", 0)
    context = FakeContext()
    await serve(bad, context, streaming=False)
    assert context.rich().code == code_pb2.INVALID_ARGUMENT


@pytest.mark.parametrize(("remaining", "code"), [(None, "CANCELLED"), (3.0, "CANCELLED"), (0.0, "DEADLINE_EXCEEDED")])
async def test_cancelled_call_is_counted_and_closed(remaining: float | None, code: str) -> None:
    """At once, and its line tells a deadline from a client that went away."""
    closed = []

    async def behaviour(_request: Any, _context: Any) -> AsyncIterator[str]:
        try:
            yield "first"
            raise asyncio.CancelledError
        finally:
            closed.append(1)

    with capture_logs() as logs:
        _, cancelled = await serve(behaviour, FakeContext(remaining))
    assert (cancelled, closed) == (1, [1])
    assert [(line["event"], line["code"]) for line in logs] == [("rpc", code)]


async def test_every_call_logs_one_line_and_polls_at_debug() -> None:
    """With its code and its time."""

    async def nothing(_request: Any, _context: Any) -> AsyncIterator[str]:
        return
        yield

    with capture_logs() as logs:
        await serve(nothing, FakeContext())
        await serve(nothing, FakeContext(), method=QUIET)
    assert [(line["event"], line["log_level"], line["code"]) for line in logs] == [
        ("rpc", "info", "OK"),
        ("rpc", "debug", "OK"),
    ]
    assert all(line["duration_s"] >= 0 for line in logs)


async def test_call_end_is_traced_with_code_and_headers() -> None:
    """However it ends; a Stats that succeeds is polled all day and not worth it."""
    ended: list[CallRecord] = []

    async def cancelled(_request: Any, _context: Any) -> AsyncIterator[str]:
        yield "first"
        raise asyncio.CancelledError

    for behaviour in (raising(invalid("model", "is missing")), raising(ValueError(SECRET)), cancelled):
        await serve(behaviour, FakeContext(), on_end=ended.append)
    await serve(raising(ValueError(SECRET)), FakeContext(), on_end=ended.append, method=QUIET)
    assert [call.code for call in ended] == ["INVALID_ARGUMENT", "INTERNAL", "CANCELLED", "INTERNAL"]
    assert {tuple(call.headers.items()) for call in ended} == {(("traceparent", "00-1"),)}
    assert [call.fields["rpc"] for call in ended] == ["Generate", "Generate", "Generate", "Stats"]
    assert ended[0].fields["reason"] == "INVALID_ARGUMENT"
    assert all(call.duration >= 0 for call in ended)

    async def answer(_request: Any, _context: Any) -> str:
        return "figures"

    before = len(ended)
    await serve(answer, FakeContext(), streaming=False, on_end=ended.append, method=QUIET)
    assert len(ended) == before


async def test_health_calls_are_neither_logged_nor_counted() -> None:
    """It is polled all day; a refused call of it still gets its reason."""

    async def behaviour(_request: Any, _context: Any) -> str:
        return "serving"

    async def gone(_request: Any, _context: Any) -> str:
        raise asyncio.CancelledError

    with capture_logs() as lines:
        assert await serve(behaviour, FakeContext(), streaming=False, method=CHECK) == ("serving", 0)
        assert await serve(gone, FakeContext(), streaming=False, method=CHECK) == (None, 0)
        context = FakeContext(request=b"x" * (SMALL + 1))
        await serve(behaviour, context, streaming=False, method=CHECK)
    assert lines == []
    assert detail(context.rich(), error_details_pb2.BadRequest).field_violations[0].field == "request"


async def test_call_cancelled_before_request_is_not_logged() -> None:
    """They can come by the thousand; a call without a request that stays is told so."""

    async def never(_request: Any, _context: Any) -> AsyncIterator[str]:
        raise AssertionError("it has no request")
        yield

    with capture_logs() as lines:
        _, cancelled = await serve(never, FakeContext(request=asyncio.CancelledError()))
        context = FakeContext(request=grpc.aio.EOF)
        await serve(never, context)
    assert cancelled == 0
    assert [(line["log_level"], line["code"]) for line in lines] == [
        ("debug", "CANCELLED"),
        ("info", "INVALID_ARGUMENT"),
    ]
    assert context.rich().message == "request is missing"


async def test_streamed_requests_are_received_one_by_one() -> None:
    """Reflection is such a service."""
    seen = []

    async def behaviour(requests: Any, _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            seen.append(request)
            yield request

    make: Any = grpc.stream_stream_rpc_method_handler(behaviour, request_deserializer=lambda data: data)
    lane = Lane(places=1)
    interceptor = CallInterceptor(Arrivals({CHECK: Way(lane, SMALL, 1)}), lambda: None)

    async def continuation(_: Any) -> Any:
        return make

    details: Any = SimpleNamespace(method=CHECK, invocation_metadata=())
    handler: Any = await interceptor.intercept_service(continuation, details)
    context = FakeContext()
    requests = iter([b"one", b"two", grpc.aio.EOF])

    async def read() -> Any:
        return next(requests)

    context.read = read  # type: ignore[method-assign]
    await handler.stream_stream(None, context)
    assert seen == context.written == [b"one", b"two"]


async def test_unknown_method_stays_unimplemented() -> None:
    """gRPC answers UNIMPLEMENTED by itself."""

    async def continuation(_: Any) -> None:
        return None

    details: Any = SimpleNamespace(method="/x/y", invocation_metadata=())
    assert await CallInterceptor(Arrivals({}), lambda: None).intercept_service(continuation, details) is None
