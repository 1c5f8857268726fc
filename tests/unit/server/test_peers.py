"""The processes at the other end of a socket: of this system for real, and of macOS with a library of the tests."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from daemon.server.peers import MAX_NAME, Darwin, Peers, this_system

CONNECTED = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
sys.stdin.read()
"""
CALLER = """
import sys, grpc
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    channel.unary_unary("/a/b")(b"")
"""


class Library:
    """libproc of macOS."""

    def __init__(self, path: bytes) -> None:
        self._path = path

    def proc_pidpath(self, pid: int, buffer: Any, size: int) -> int:
        """Write the path of the only process, 7."""
        if pid != 7:
            return 0
        ctypes.memmove(buffer, self._path, len(self._path))
        assert len(self._path) < size
        return len(self._path)


class Connection:
    """A connected socket of macOS."""

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """Tell LOCAL_PEERPID at SOL_LOCAL."""
        assert (level, option, size) == (0, 2, 4)
        return struct.pack("i", 7)


class Named:
    """A system with one name for all programs."""

    def __init__(self, name: str) -> None:
        self._system = this_system()
        self.descriptors = self._system.descriptors
        self._name = name

    def peer(self, connection: socket.socket) -> int:
        """Return what the kernel says."""
        return self._system.peer(connection)

    def program(self, pid: int) -> str:
        """Return the name."""
        return self._name


@pytest.fixture(name="listener")
def _listener(folder: Path) -> Any:
    """Return a listening socket that was renamed, as the daemon's is."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "private"))
        listener.listen()
        (folder / "private").rename(folder / "public")
        yield listener


def test_connected_processes_are_known_by_the_kernel(listener: socket.socket, folder: Path) -> None:
    """This one, once for two connections, and a child's; the listener and other sockets are no connections."""
    peers = Peers(folder / "private", this_system())
    assert peers.connected() == {}
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(folder / "public"))
            stack.enter_context(listener.accept()[0])
        for other in (*socket.socketpair(), socket.create_server(("127.0.0.1", 0))):
            stack.enter_context(other)
        child = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", CONNECTED, folder / "public"], stdin=subprocess.PIPE)
        )
        stack.enter_context(listener.accept()[0])
        connected = peers.connected()
        assert set(connected) == {os.getpid(), child.pid}
        assert all(connected.values())
        assert peers.connected() == connected, "a look closes nothing"
        assert child.stdin is not None
        child.stdin.close()
        child.wait()
        assert peers.connected().keys() <= {os.getpid()}, "a process that ended has no name"
    assert peers.connected() == {}


def test_connected_processes_are_known_where_macos_tells_no_listener(
    listener: socket.socket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its SO_ACCEPTCONN always fails, with ENOPROTOOPT. All callers would be unknown, and share one turn."""

    class MacSocket(socket.socket):
        def getsockopt(self, *question: Any) -> Any:
            if question[:2] == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
            return super().getsockopt(*question)

    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "public"))
        with listener.accept()[0]:
            monkeypatch.setattr(socket, "socket", MacSocket)
            assert set(Peers(folder / "private", this_system()).connected()) == {os.getpid()}


def test_names_of_programs_are_cleaned_and_cut(listener: socket.socket, folder: Path) -> None:
    """A process chooses its name, and the name goes to terminals and into logs."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "public"))
        with listener.accept()[0]:
            for name, shown in {
                "a\x1b[2J\n": "a__2J_",
                "x" * 999: "x" * MAX_NAME,
                "A b": "A_b",
            }.items():
                assert Peers(folder / "private", Named(name)).connected() == {os.getpid(): shown}
            assert Peers(folder / "private", Named("")).connected() == {}


def test_no_free_descriptor_is_no_error(folder: Path, tmp_path: Path) -> None:
    system = Named("x")
    system.descriptors = str(tmp_path / "none")
    assert Peers(folder / "private", system).connected() == {}


def test_macos_names_the_peer_and_its_program() -> None:
    """LOCAL_PEERPID, then the last part of proc_pidpath."""
    system = Darwin(Library("/Applications/Código.app/Contents/MacOS/Code Helper".encode()))
    assert system.peer(Connection()) == 7  # type: ignore[arg-type]
    assert system.program(7) == "Code Helper"
    with pytest.raises(ProcessLookupError):
        system.program(8)


async def test_grpc_tells_no_peer_of_a_call(folder: Path) -> None:
    """
    The reason of all this: two processes call, and gRPC says "unix:" of both, without a word of authentication.

    When this test fails, gRPC has learned to tell them apart, and `callers.py` can go.
    """
    seen: list[tuple[str, Any]] = []

    class Handler(grpc.GenericRpcHandler):
        def service(self, _details: Any) -> Any:
            async def handle(_request: bytes, context: Any) -> bytes:
                seen.append((context.peer(), context.peer_identities()))
                return b""

            return grpc.unary_unary_rpc_method_handler(handle)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Handler()])
    server.add_insecure_port(f"unix:{folder}/s")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{folder}/s") as channel:
            call: Any = channel.unary_unary("/a/b")
            await call(b"")
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", CALLER, f"{folder}/s")
        assert await child.wait() == 0
    finally:
        await server.stop(0)
    assert seen == [("unix:", None), ("unix:", None)]
