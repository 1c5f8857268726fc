"""The interceptor logs a line for each call, with its code; polls, and calls that never came, are quiet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from daemon.server.call_record import CallRecord
from daemon.shared.errors import invalid
from tests.unit.server.intercepted import CHECK, QUIET, SECRET, SMALL, FakeContext, detail, raising, serve


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
