"""A client connects late, once and only to a daemon that answers, and leaves nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import socket as sockets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from mlx_sidecar import Cancelled, Client, ConnectionLost, DaemonNotRunning
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.client.scripted import HANG, Fail, Script, delta, finished, hello, started

STATS = pb.StatsResponse(daemon=pb.DaemonStats(version="1.2"))
Serve = Callable[[Path], Any]


def test_nothing_is_opened_before_the_first_call(socket: Path) -> None:
    """A client may be made before its daemon, and costs nothing until it is used."""
    client = Client(socket)
    assert repr(client) == f"<mlx_sidecar.Client socket='{socket}' idle>"
    assert client._channel is None


def test_all_calls_share_one_channel(client: Client, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls there are."""
    opened: list[str] = []
    original = grpc.insecure_channel

    def insecure_channel(target: str, options: Any) -> grpc.Channel:
        opened.append(target)
        return original(target, options)

    monkeypatch.setattr(grpc, "insecure_channel", insecure_channel)
    script.answer([STATS])
    for _ in range(3):
        client.stats()
    assert opened == [f"unix:{client.socket}"]
    assert repr(client) == f"<mlx_sidecar.Client socket='{client.socket}' connected>"


def test_starting_daemon_is_waited_for(
    serve: Serve, socket: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call waits for the socket to appear."""
    script.answer([STATS])
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        serve(socket)

    monkeypatch.setattr(time, "sleep", wait)
    with Client(socket) as client:
        assert client.stats().daemon.version == "1.2"
    assert len(waits) == 1


@pytest.mark.parametrize("timeout", [0.0, 0.05])
def test_no_socket_means_that_no_daemon_runs(socket: Path, timeout: float) -> None:
    """The message names the socket and says what to do."""
    with Client(socket, timeout=timeout) as client, pytest.raises(DaemonNotRunning) as caught:
        client.stats()
    assert str(socket) in str(caught.value)
    assert str(caught.value).endswith(f"start it with: mlx-sidecar serve --socket {socket}")


def test_socket_path_that_no_daemon_can_have_is_named(socket: Path) -> None:
    """A command that starts a daemon there would be refused, so none is advised."""
    long = socket.with_name("s" * 100)
    with Client(long, timeout=0.0) as client, pytest.raises(DaemonNotRunning, match="at most 103; choose a") as caught:
        client.stats()
    assert "mlx-sidecar serve" not in str(caught.value)


def test_default_socket_is_not_part_of_the_advice(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is where `serve` listens without it."""
    monkeypatch.setenv("MLX_SIDECAR_SOCKET", str(socket))
    with Client(timeout=0.0) as client, pytest.raises(DaemonNotRunning, match=r"start it with: mlx-sidecar serve$"):
        client.stats()


def test_dead_socket_means_that_no_daemon_runs(socket: Path) -> None:
    """What a killed daemon leaves."""
    with sockets.socket(sockets.AF_UNIX) as listener, Client(socket, timeout=0.1) as client:
        listener.bind(str(socket))
        with pytest.raises(DaemonNotRunning, match="start it with: mlx-sidecar serve"):
            client.generate("m", "Hi")


@pytest.mark.parametrize("full", [False, True])
def test_silent_daemon_is_not_reported_as_absent(socket: Path, full: bool) -> None:
    """One that is stopped or very busy, also one that has as many connections waiting as its queue holds."""
    if full and sys.platform != "linux":
        pytest.skip("elsewhere a queue that is full refuses as if nothing listened")
    with sockets.socket(sockets.AF_UNIX) as listener, Client(socket, timeout=0.1) as client, ExitStack() as stack:
        listener.bind(str(socket))
        listener.listen(0 if full else 8)
        if full:
            stack.enter_context(sockets.socket(sockets.AF_UNIX)).connect(str(socket))
        with pytest.raises(ConnectionLost, match="it does not answer in time; try again") as caught:
            client.generate("m", "Hi")
        assert caught.value.retry_after


def test_process_without_descriptors_says_so(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that no daemon runs, which it cannot know; and as an error of this package."""

    def full(*_: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with sockets.socket(sockets.AF_UNIX) as listener, Client(socket, timeout=0.0) as client:
        listener.bind(str(socket))
        monkeypatch.setattr(sockets, "socket", full)
        with pytest.raises(ConnectionLost, match=r"cannot open a socket \(Too many open files\)"):
            client.stats()


def test_sandbox_is_no_absent_daemon(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coding tools run commands in sandboxes. Advice to start a second daemon would lead nowhere."""

    class Forbidden(sockets.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with sockets.socket(sockets.AF_UNIX) as bound:
        bound.bind(str(socket))
        monkeypatch.setattr("mlx_sidecar._address.socket.socket", Forbidden)
        with Client(socket, timeout=0.1) as client, pytest.raises(ConnectionLost, match="a sandbox, allow") as caught:
            client.stats()
    assert "mlx-sidecar serve" not in str(caught.value)


def test_bare_unavailable_is_not_reported_as_absent(serve: Serve, socket: Path, script: Script) -> None:
    """gRPC makes such an UNAVAILABLE by itself; the socket shows that a daemon listens."""
    script.answer([started(), Fail("UNAVAILABLE", "")])
    serve(socket)
    with Client(socket) as client, pytest.raises(ConnectionLost, match="refused or cut off without a reason"):
        client.complete("m", "Hi")


def test_client_finds_a_daemon_that_came_back(serve: Serve, socket: Path, script: Script) -> None:
    """The same client, over the same channel."""
    script.answer([STATS])
    server = serve(socket)
    with Client(socket, timeout=5) as client:
        client.stats()
        server.stop(None).wait()
        with pytest.raises(DaemonNotRunning, match="the connection failed"):
            client.stats()
        assert "idle" in repr(client)
        serve(socket)
        assert client.stats().daemon.version == "1.2"


def test_daemon_death_in_mid_stream_is_reported(serve: Serve, socket: Path, script: Script) -> None:
    """What it had sent was there, then the exception comes."""
    script.answer([started(), HANG])
    server = serve(socket)
    with Client(socket) as client:
        stream = client.generate("m", "Hi")
        next(stream)
        server.stop(None).wait()
        with pytest.raises(DaemonNotRunning):
            next(stream)


def test_socket_path_with_uri_characters_works(serve: Serve, socket: Path, script: Script) -> None:
    """A space, and all that has a meaning in a URI."""
    script.answer([STATS])
    odd = socket.with_name("a b#c?d%20é.sock")
    serve(odd)
    with Client(odd) as client:
        assert client.stats().daemon.version == "1.2"


def test_answers_may_exceed_grpcs_default_size(client: Client, script: Script) -> None:
    """gRPC's own limit is 4 MiB."""
    script.answer([started(), delta(1, "x" * 5_000_000), finished(2)])
    assert len(client.complete("m", "Hi").text) == 5_000_000


def test_closing_a_stream_reaches_the_daemon(client: Client, script: Script) -> None:
    """Over a real connection, while another thread waits for the next event."""
    script.answer([started(), HANG])
    stream = client.generate("m", "Hi")
    next(stream)
    caught: list[BaseException] = []

    def read() -> None:
        with pytest.raises(Cancelled) as info:
            stream.result()
        caught.append(info.value)

    reader = threading.Thread(target=read)
    reader.start()
    stream.close()
    reader.join()
    assert caught
    assert script.cancelled.wait(10)


def test_an_abandoned_stream_reaches_the_daemon(client: Client, script: Script) -> None:
    """Without the help of the garbage collector."""
    script.answer([started(), HANG])
    gc.disable()
    try:
        for _ in client.generate("m", "Hi"):
            break
        assert script.cancelled.wait(10)
    finally:
        gc.enable()


def test_closing_the_client_cancels_its_streams(client: Client, script: Script) -> None:
    """And no call can be made afterwards."""
    script.answer([started(), HANG])
    stream = client.generate("m", "Hi")
    next(stream)
    client.close()
    client.close()
    with pytest.raises(Cancelled):
        stream.result()
    with pytest.raises(RuntimeError, match="closed"):
        client.stats()
    assert repr(client).endswith("closed>")


def test_a_client_that_is_not_closed_warns(serve: Serve, socket: Path, script: Script) -> None:
    """It closes its channel all the same."""
    script.answer([STATS])
    serve(socket)
    clients = [Client(socket)]
    clients[0].stats()
    with pytest.warns(ResourceWarning, match="unclosed <mlx_sidecar.Client"):
        clients.clear()


def test_unused_client_need_not_be_closed(socket: Path) -> None:
    """There is nothing to leak."""
    client = Client(socket)
    del client
    gc.collect()


def test_clients_leave_no_file_open(serve: Serve, socket: Path, script: Script) -> None:
    """Nor do their streams. The daemon's end, which is open in this process too, closes a little later."""
    serve(socket)
    counts = []
    for _ in range(30):
        script.answer(hello())
        with Client(socket) as client:
            client.complete("m", "Hi")
        counts.append(len(os.listdir("/dev/fd")))
    assert counts[-1] - counts[0] < 15
