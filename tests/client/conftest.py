"""Fixtures of the client's tests: a short socket path, and scripted daemons on it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from mlx_sidecar import Client
from mlx_sidecar._address import target
from mlx_sidecar.v1.sidecar_pb2_grpc import add_SidecarServiceServicer_to_server
from tests.client.scripted import AsyncServicer, FakeDaemon, Script, ThreadedServicer


@pytest.fixture(name="fake")
def _fake() -> Iterator[FakeDaemon]:
    """Return a client over a fake channel."""
    fake = FakeDaemon()
    with fake.client:
        yield fake


@pytest.fixture(name="socket")
def _socket() -> Iterator[Path]:
    """Return a path for a socket; pytest's own folders are too long for one on macOS."""
    folder = tempfile.mkdtemp(prefix="mlx-", dir="/tmp")
    yield Path(folder, "sidecar.sock")
    shutil.rmtree(folder)


@pytest.fixture(name="script")
def _script() -> Script:
    """Return what the scripted daemon plays."""
    return Script()


@pytest.fixture(name="serve")
def _serve(script: Script) -> Iterator[Callable[[Path], Any]]:
    """Return a function that starts a scripted daemon on a path and returns its server."""
    servers: list[Any] = []
    with futures.ThreadPoolExecutor(4) as pool:

        def serve(path: Path) -> Any:
            server = grpc.server(pool)
            add_SidecarServiceServicer_to_server(ThreadedServicer(script), server)
            server.add_insecure_port(target(path))
            server.start()
            servers.append(server)
            return server

        yield serve
        script.cancelled.set()
        for server in servers:
            server.stop(None).wait()


@pytest.fixture(name="client")
def _client(serve: Callable[[Path], Any], socket: Path) -> Iterator[Client]:
    """Return a client of a scripted daemon."""
    serve(socket)
    with Client(socket) as client:
        yield client


@pytest.fixture(name="aio_daemon")
async def _aio_daemon(script: Script, socket: Path) -> AsyncIterator[Path]:
    """Return the socket of a scripted asyncio daemon."""
    server = grpc.aio.server()
    add_SidecarServiceServicer_to_server(AsyncServicer(script), server)
    server.add_insecure_port(target(socket))
    await server.start()
    yield socket
    await server.stop(None)
