"""Clients that are closed while a call connects: the call ends, and neither its task nor a channel is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from socket import AF_UNIX
from socket import socket as Socket  # noqa: N812 - the name is free in no other way: the path is `socket`
from typing import Any

import pytest

from mlx_sidecar import AsyncClient, Cancelled, Client, _aio, _client
from tests.client.scripted import PATIENCE

CALLS: list[Callable[[Any], Any]] = [lambda client: client.stats(), lambda client: client.complete("m", "Hi")]


@pytest.fixture(name="silent")
def _silent(socket: Path) -> Iterator[Socket]:
    """Return a listener that accepts connections and answers nothing."""
    with Socket(AF_UNIX) as listener:
        listener.bind(str(socket))
        listener.listen()
        listener.settimeout(PATIENCE)
        yield listener


def _missing(monkeypatch: pytest.MonkeyPatch, module: Any) -> threading.Event:
    """Let no socket exist, and return an event that is set by the first look for one."""
    looked = threading.Event()

    def exists(_path: Path) -> bool:
        looked.set()
        return False

    monkeypatch.setattr(module, "socket_exists", exists)
    return looked


@pytest.mark.parametrize("call", CALLS)
def test_client_closed_while_it_connects_cancels_the_call(
    silent: Socket, socket: Path, call: Callable[[Any], Any]
) -> None:
    """The call began before, so that it is no call on a closed client."""
    client = Client(socket)
    with ThreadPoolExecutor(1) as pool:
        running: Future[Any] = pool.submit(call, client)
        connection, _ = silent.accept()
        client.close()
        with connection, pytest.raises(Cancelled, match="closed"):
            running.result(PATIENCE)
    assert repr(client).endswith("closed>")


def test_client_closed_while_it_waits_for_a_socket_opens_none(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that is opened after the close would stay open for good."""
    looked = _missing(monkeypatch, _client)
    client = Client(socket, timeout=PATIENCE)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.stats)
        assert looked.wait(PATIENCE)
        client.close()
        with pytest.raises(Cancelled, match="closed"):
            running.result(PATIENCE)
    assert client._channel is None


@pytest.mark.parametrize("call", CALLS)
async def test_async_client_closed_while_it_connects_spares_the_task(
    silent: Socket, socket: Path, call: Callable[[Any], Any]
) -> None:
    """A CancelledError would look as if the task itself had been cancelled, and end it without a word."""
    client = AsyncClient(socket)
    running = asyncio.ensure_future(call(client))
    connection, _ = await asyncio.to_thread(silent.accept)
    await client.aclose()
    with connection, pytest.raises(Cancelled, match="closed"):
        await running


async def test_task_that_is_cancelled_while_it_connects_ends(silent: Socket, socket: Path) -> None:
    """And the client can be used again."""
    async with AsyncClient(socket) as client:
        running = asyncio.ensure_future(client.stats())
        connection, _ = await asyncio.to_thread(silent.accept)
        running.cancel()
        with connection, pytest.raises(asyncio.CancelledError):
            await running


async def test_async_client_closed_while_it_waits_for_a_socket_opens_none(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the other client does."""
    looked = _missing(monkeypatch, _aio)
    client = AsyncClient(socket, timeout=PATIENCE)
    running = asyncio.ensure_future(client.stats())
    assert await asyncio.to_thread(looked.wait, PATIENCE)
    await client.aclose()
    monkeypatch.setattr(_aio, "socket_exists", lambda _path: True)
    with pytest.raises(Cancelled, match="closed"):
        await running
    assert client._channel is None
