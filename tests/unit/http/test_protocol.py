"""Connections have limits: a head that does not come, a request that cannot be read, a response that is not read."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from daemon.http import protocol
from daemon.http.protocol import Connection

CALM = b"HTTP/1.1 200 OK"


class Endless:
    """
    An application that answers at once, or without end if the path says so.

    Attributes:
        ended: Set when an endless answer was ended.
    """

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = [(b"content-length", b"2")] if scope["path"] == "/" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/":
            await send({"type": "http.response.body", "body": b"ok"})
            return
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        self.ended.set()


@asynccontextmanager
async def served(folder: Path, app: Any) -> AsyncIterator[Path]:
    """Serve an application with the door's connections, and yield the socket's path."""
    path = folder / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        config = uvicorn.Config(app, http=Connection, lifespan="off", log_config=None, access_log=False)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve([listener]))
        yield path
        server.should_exit = server.force_exit = True
        await task


async def test_connection_without_a_head_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, a part of a head, and a part of a second one: each has the same limit."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    async with served(folder, Endless()) as path:
        for begun in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HT"):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(begun)
            content = b""
            with suppress(ConnectionResetError):
                content = await reader.read()
            assert content.startswith(CALM) == (b"\r\n\r\n" in begun)
            writer.close()


async def test_connection_is_kept_between_requests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a head begins with its first byte."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    async with served(folder, Endless()) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await reader.readuntil(b"ok")).startswith(CALM)
            await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()


async def test_response_that_is_not_read_is_cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer ends, and with it what computes it; what was not read is dropped."""
    monkeypatch.setattr(protocol, "LAG_SECONDS", 0.05)
    app = Endless()
    with capture_logs() as logged:
        await _lag(folder, app)
    assert [line["event"] for line in logged] == ["http_client_lags"], "further writes do not wait"


async def _lag(folder: Path, app: Endless) -> None:
    async with served(folder, app) as path:
        reader, writer = await asyncio.open_unix_connection(path, limit=1024)
        writer.write(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        await app.ended.wait()
        content = b""
        with suppress(ConnectionResetError):
            while part := await reader.read(1 << 20):
                content += part
        assert content.startswith(CALM)
        assert len(content) < 1000 * 65536
        writer.close()


async def test_unreadable_request_is_refused(folder: Path) -> None:
    """And the connection is closed."""
    async with served(folder, Endless()) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"\x16\x03\x01\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
