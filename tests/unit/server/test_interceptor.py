"""The interceptor: errors reach callers with details, unexpected ones without; all kinds of calls are wrapped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2
from structlog.contextvars import bind_contextvars
from structlog.testing import capture_logs

from daemon.server.arrivals import Arrivals, Lane, Way
from daemon.server.interceptor import MAX_MESSAGE, CallInterceptor, code_name, status
from daemon.shared.errors import Reason, SidecarError, invalid
from tests.unit.server.intercepted import CHECK, SECRET, SMALL, FakeContext, detail, raising, serve


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


async def test_client_that_goes_during_a_write_is_no_bug() -> None:
    """gRPC fails a write that waits for the client to read, and cancels the call only then."""

    class Gone(FakeContext):
        async def write(self, message: Any) -> None:
            raise grpc.aio.InternalError('Failed "execute_batch"')

    context = Gone()
    with capture_logs() as logs:
        _, cancelled = await serve(raising(ValueError(SECRET)), context)
    assert cancelled == 1
    assert context.aborted is None
    assert [(line["event"], line.get("code")) for line in logs] == [("rpc", "CANCELLED")]


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
