"""A port on which another program answers is in use, also where the system would share it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from daemon.cli.output.exporter import serve
from daemon.server.group.joiner import Joiner
from daemon.server.http_listener import listen_on
from daemon.shared import ports
from daemon.shared.config import Config, ConfigError
from daemon.shared.ports import refuse_taken


def _door(port: int) -> None:
    listen_on(port).close()


def _metrics(port: int) -> None:
    with serve(cast("Any", SimpleNamespace(stats=None)), "127.0.0.1", port):
        pass


@pytest.fixture(name="shared_port")
def _shared_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """
    Return a port of a program that listens on all addresses, and let the system share it.

    macOS shares an address of such a port with a program that sets SO_REUSEADDR; Linux does if both set SO_REUSEPORT.
    """
    monkeypatch.setattr(socket, "SO_REUSEADDR", socket.SO_REUSEPORT)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("0.0.0.0", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize("listen", [_door, _metrics], ids=["door", "metrics"])
def test_port_of_another_program_is_not_shared(shared_port: int, listen: Callable[[int], None]) -> None:
    """Its clients on this machine would be ours from then on, without a word to either."""
    with pytest.raises(OSError, match="in use") as caught:
        listen(shared_port)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("listen", [_door, _metrics], ids=["door", "metrics"])
def test_own_port_is_free_after_an_end(listen: Callable[[int], None]) -> None:
    """At once, also with a connection that was open: a service that starts again wants the same port."""
    first = listen_on(0)
    port = first.socket.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = first.socket.accept()
        accepted.close()
        first.close()
        assert client.recv(1) == b""
    listen(port)


def test_program_that_accepts_nothing_has_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue is full, and a caller would wait without end."""
    monkeypatch.setattr(ports, "_ANSWER_SECONDS", 0.01)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(0)
        callers = [socket.socket() for _ in range(3)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(other.getsockname())
        with pytest.raises(OSError, match="in use"):
            refuse_taken(*other.getsockname())
        for caller in callers:
            caller.close()


def test_rank_does_not_share_a_port_of_another_program(shared_port: int, tmp_path: Path) -> None:
    """`mlx-sidecar join` is refused, as the door is."""
    joining = Joiner(Config(state_dir=tmp_path, group_listen=f"127.0.0.1:{shared_port}"), bytes(32))
    with pytest.raises(ConfigError, match="in use; it has to be a free port of an address of this machine"):
        asyncio.run(asyncio.wait_for(joining.serve(), timeout=60))


def test_address_of_another_machine_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not answer, and the port would seem to be in use here."""

    class Silent(socket.socket):
        def connect(self, address: object) -> None:
            raise TimeoutError

    monkeypatch.setattr(socket, "socket", Silent)
    refuse_taken("203.0.113.7", 80)
