"""The server of the door: serves HTTP on a socket that is bound already, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket as sockets
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import structlog
import uvicorn.server

from daemon.http.access import Policy
from daemon.http.app import build
from daemon.http.daemon_client import DaemonClient
from daemon.http.protocol import HEAD_BYTES, IDLE_SECONDS, Connection
from daemon.http.token import read_token
from daemon.shared.config import Config
from mlx_sidecar import AsyncClient

CONNECTIONS = 512
"""Most open connections; a request on one more is answered with 503."""
DRAIN_SECONDS = 5
"""Time that running answers have to end after the order to stop."""
_LOOK_SECONDS = 0.5
"""Time between two looks at whether the tool of a launch still runs."""

log = structlog.get_logger()


def policy(config: Config, listener: sockets.socket, token: str | None = None) -> Policy:
    """
    Return which requests may use a listener.

    Other users cannot reach a Unix socket in a private directory. A port is open to each user of the machine and to
    each page of a browser, so it needs the token and a loopback name.

    Raises:
        TokenError: If the token's file is unfit.
    """
    if listener.family == sockets.AF_UNIX:
        return Policy(token=None, loopback_only=False, origins=config.http_origins)
    return Policy(
        token=token or read_token(config.state_dir),
        loopback_only=True,
        origins=config.http_origins,
        hosts=config.http_hosts,
    )


class Server(uvicorn.server.Server):
    """
    A server that tells when it answers, and leaves signals to its caller.

    Args:
        client: Calls the daemon.
        allowed: Which requests may use it.
        ready: Called when requests are answered.
    """

    def __init__(self, client: AsyncClient, allowed: Policy, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                build(client, allowed),
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS,
                backlog=128,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
                h11_max_incomplete_event_size=HEAD_BYTES,
            )
        )
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Do nothing. uvicorn would raise them again at the end, before our socket is removed."""
        yield

    def end(self) -> None:
        """Take no more requests, and end as soon as the running ones are answered."""
        self.should_exit = True

    async def startup(self, sockets: list[sockets.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        self._ready()


async def serve_by_hand(
    daemon: Path, listener: sockets.socket, allowed: Policy, ready: Callable[[], None], hygiene: bool = True
) -> None:
    """
    Serve until SIGTERM or SIGINT.

    Args:
        daemon: The daemon's own socket. No daemon needs to run yet.
        listener: A socket that listens; it is closed at the end.
        allowed: Which requests may use it.
        ready: Called when requests are answered.
        hygiene: Whether beginnings of prompts are made steady.
    """
    async with DaemonClient(daemon, hygiene) as client:
        server = Server(client, allowed, ready)
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, server.end)
        await server.serve([listener])


async def serve_for_parent(config: Config, listener: sockets.socket) -> None:
    """
    Serve for the daemon's parent process, until it says so or is gone: it holds the other end of standard input.

    Raises:
        TokenError: If the token's file is unfit.
    """
    allowed = policy(config, listener)
    async with DaemonClient(config.socket, config.http_hygiene) as client:
        server = Server(client, allowed, _serving)
        parent = asyncio.create_task(_end_of_input())
        parent.add_done_callback(lambda _: server.end())
        await server.serve([listener])
        parent.cancel()


async def serve_for_tool(
    config: Config, listener: sockets.socket, token: str, tool: int, ready: Callable[[], None]
) -> None:
    """
    Serve one tool, which is this process's parent, until it is gone, whatever ends it.

    Args:
        config: Where the daemon is.
        listener: A port that listens; it is closed at the end.
        token: What each request must carry.
        tool: Process id of the tool.
        ready: Called when requests are answered.
    """
    async with DaemonClient(config.socket, config.http_hygiene) as client:
        server = Server(client, policy(config, listener, token), ready)
        watch = asyncio.create_task(_end_of_parent(tool))
        watch.add_done_callback(lambda _: server.end())
        await server.serve([listener])
        watch.cancel()


async def _end_of_parent(pid: int) -> None:
    """Wait until a process is not the parent any more. A pipe would not do: what the tool starts would hold it too."""
    while os.getppid() == pid:  # noqa: ASYNC110 - no event tells it on all systems
        await asyncio.sleep(_LOOK_SECONDS)


def _serving() -> None:
    log.info("http_serving", pid=os.getpid())


async def _end_of_input() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass
