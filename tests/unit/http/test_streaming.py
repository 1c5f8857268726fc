"""Streams: statuses of early failures, signs of life, the end of a client, and failures under way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.requests import Request as StarletteRequest
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.http import streaming
from daemon.http.errors import ClientGone, Problem
from daemon.http.ollama import errors as ollama
from daemon.http.openai import errors as openai
from daemon.http.streaming import Framing, begin, event, until_gone
from mlx_sidecar import EngineRestarted, InvalidArgument
from tests.support.asgi import Request

FRAMING = Framing("text/event-stream", b": alive\n\n", lambda problem: event(problem.code, "error"))


class Source:
    """
    Pieces that a test lets go.

    Attributes:
        closed: Set when the pieces were closed.
    """

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    def put(self, piece: bytes | Exception | None) -> None:
        """Let the next piece go; an exception to fail, None to end."""
        self._queue.put_nowait(piece)

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield what was put."""
        try:
            while (piece := await self._queue.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.closed.set()


def streams(pieces: Callable[[], AsyncGenerator[bytes]], framing: Framing = FRAMING) -> ASGIApp:
    """Return an application that streams pieces."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = StarletteRequest(scope, receive)
        await request.body()
        await (await begin(request, pieces(), framing, {"x-note": "n"}))(scope, receive, send)

    return app


async def test_stream_sends_each_piece_as_it_comes() -> None:
    source, request = Source(), Request("POST", "/")
    source.put(b"a")
    task = asyncio.create_task(request.to(streams(source.pieces)))
    while request.response.pieces != [b"a"]:
        await request.arrived.wait()
        request.arrived.clear()
    assert request.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert request.response.headers["x-note"] == "n"
    assert request.response.headers["cache-control"] == "no-store, no-transform"
    assert request.response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in request.response.headers
    source.put(b"b")
    source.put(None)
    assert (await task).pieces == [b"a", b"b"]
    assert source.closed.is_set()


async def test_piece_makes_no_task_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn of the event loop takes as long as the rest of a piece. What is there at once is sent at once."""
    source, begun = Source(), []
    make = asyncio.create_task

    def counted(work: Any, **options: Any) -> asyncio.Task[Any]:
        begun.append(work)
        return make(work, **options)

    monkeypatch.setattr(asyncio, "create_task", counted)
    for number in range(100):
        source.put(b"%d" % number)
    source.put(None)
    assert len((await Request("POST", "/").to(streams(source.pieces))).pieces) == 100
    assert len(begun) < 10


async def test_failure_before_the_first_piece_is_raised() -> None:
    """So that it gets a status of its own."""
    source = Source()
    source.put(Problem(429, "full", code="queue_full"))
    with pytest.raises(Problem, match="full"):
        await Request("POST", "/").to(streams(source.pieces))
    assert source.closed.is_set()


async def test_failure_under_way_is_the_last_piece() -> None:
    """In the API's shape. An error that nothing expects is one as well, without its text."""
    for error, code in ((EngineRestarted("gone"), b"engine_restarted"), (ValueError("secret"), b"internal")):
        source, request = Source(), Request("POST", "/")
        source.put(b"a")
        source.put(error)
        response = await request.to(streams(source.pieces))
        assert response.pieces == [b"a", b"event: error\ndata: " + code + b"\n\n"]


async def test_failure_under_way_has_the_names_of_the_api() -> None:
    """A model that loads for long is refused its request after the status was sent."""
    framing = Framing("text/event-stream", None, lambda problem: (problem.field or "").encode(), {"chat": "messages"})
    source, request = Source(), Request("POST", "/")
    source.put(b"a")
    source.put(InvalidArgument("chat is wrong", field="chat"))
    assert (await request.to(streams(source.pieces, framing))).pieces == [b"a", b"messages"]


@pytest.mark.parametrize("framing", [openai.EVENTS, ollama.framing(None)])
def test_streams_know_the_names_of_their_api(framing: Framing) -> None:
    """Anthropic's stream gets errors that have them already."""
    assert framing.names["chat.messages"] == "messages"


async def test_slow_first_piece_gets_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is sent when the wait for the first piece is over; then a comment each time nothing came."""
    monkeypatch.setattr(streaming, "HOLD_SECONDS", 0.001)
    monkeypatch.setattr(streaming, "QUIET_SECONDS", 0.001)
    source, request = Source(), Request("POST", "/")
    task = asyncio.create_task(request.to(streams(source.pieces)))
    while request.response.pieces.count(b": alive\n\n") < 3:
        await request.arrived.wait()
        request.arrived.clear()
    source.put(EngineRestarted("gone"))
    assert (await task).pieces[-1] == b"event: error\ndata: engine_restarted\n\n"
    assert request.response.status == 200


@pytest.mark.parametrize("begun", [True, False])
async def test_client_that_leaves_closes_the_pieces(begun: bool) -> None:
    """Before the first piece and after it."""
    source, request = Source(), Request("POST", "/")
    if begun:
        source.put(b"a")
    task = asyncio.create_task(request.to(streams(source.pieces)))
    while begun and not request.response.pieces:
        await request.arrived.wait()
        request.arrived.clear()
    await asyncio.sleep(0)
    request.leave()
    await source.closed.wait()
    if begun:
        await task
    else:
        with pytest.raises(ClientGone):
            await task


async def test_work_of_a_client_that_leaves_is_cancelled() -> None:
    """A whole answer that no client reads is not computed to its end."""
    request, cancelled = Request("POST", "/"), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = StarletteRequest(scope, receive)
        await asked.body()
        request.leave()
        await until_gone(asked, work())

    with pytest.raises(ClientGone):
        await request.to(app)
    assert cancelled.is_set()


def test_line_of_a_stream_is_one_for_each_client() -> None:
    """Python's `splitlines`, by which httpx reads lines, ends one at more characters than the end of a line."""
    text = "a\x85b\u2028c\u2029d\x0b\x0c\x1c\x1d\x1e\x7fé"
    body = ollama.ErrorBody(error=text)
    failed = ollama.framing(None).error(Problem(500, text, code="internal"))
    for piece in (event(body.model_dump_json()).removeprefix(b"data: "), ollama.line(body), failed):
        line, *rest = piece.decode().splitlines()
        assert json.loads(line) == {"error": text}
        assert not any(rest)
