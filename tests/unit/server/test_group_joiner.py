"""The process of `mlx-sidecar join` goes on listening, whatever comes to its port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.server.group import joiner
from daemon.server.group.handshake import call
from daemon.server.group.joiner import MOST_STRANGERS, Joiner
from daemon.shared import logs, presence
from daemon.shared.config import Config, ConfigError
from daemon.shared.frames import encode_frame
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb

KEY = bytes(range(32))


async def test_caller_that_cannot_be_taken_stops_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors may run out for a while, and a caller may be gone before it is taken. The next one is answered."""
    loop = asyncio.get_running_loop()
    take, faults = loop.sock_accept, [OSError(24, "Too many open files"), ConnectionAbortedError(103, "gone")]

    async def failing(listener: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
        if faults:
            raise faults.pop()
        return await take(listener)

    monkeypatch.setattr(loop, "sock_accept", failing)
    monkeypatch.setattr(joiner, "AGAIN_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as connection:
        listener.setblocking(False)
        connection.setblocking(False)
        accepting = asyncio.create_task(Joiner(Config(state_dir=tmp_path), KEY)._accept(listener))
        await loop.sock_connect(connection, listener.getsockname())
        called = asyncio.create_task(call(connection, KEY, 0, 0))
        await asyncio.wait({accepting, called}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert not accepting.done()
        assert accepting.cancel()
        with suppress(asyncio.CancelledError):
            await accepting
    assert (await called).greeting.versions


async def test_flood_of_strangers_leaves_one_line_in_the_log(tmp_path: Path) -> None:
    """Each is refused; a line for each would push all else out of the log."""
    joining = Joiner(Config(state_dir=tmp_path), KEY)
    with capture_logs() as logs:
        for _ in range(5):
            connection, stranger = socket.socketpair()
            connection.setblocking(False)
            stranger.close()
            await joining._answer(connection, "10.0.0.9")
    lines = [(line["event"], line["address"], line["calls"]) for line in logs]
    assert lines == [("group_caller_refused", "10.0.0.9", 1)]


async def test_engine_that_cannot_start_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank calls again and again; so it is with an engine that dies at each start. The log tells its end."""
    joining = Joiner(Config(state_dir=tmp_path, group_listen="127.0.0.1:0"), KEY)
    program = ["/nowhere/program"]
    monkeypatch.setattr(joiner, "engine_command", lambda _: program)

    async def joined() -> None:
        connection, own = socket.socketpair()
        for end in (connection, own):
            end.setblocking(False)
        answering = asyncio.create_task(joining._answer(connection, "10.0.0.1"))
        await call(own, KEY, 1, 2)
        await answering
        own.close()

    with capture_logs() as logs:
        for code in ("", "", "", "import sys; sys.exit('no library')", "import sys; sys.exit('no library')"):
            program[:] = [sys.executable, "-c", code] if code else program
            await joined()
        joining._note(ipc.Event(hello=ipc.Hello(warming=True)))
        joining._note(ipc.Event(hello=ipc.Hello()))
    assert [(line["event"], line.get("starts")) for line in logs] == [
        ("engine_start_failed", 1),
        ("group_joined", None),
        ("engine_output", None),
        ("group_left", 1),
        ("engine_starts_again", 5),
    ]


async def test_output_of_a_rank_with_requests_is_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from the first rank, so that this process knows of none; why an engine cannot start is still told."""
    hello = encode_frame(ipc.Event(hello=ipc.Hello()))
    code = (
        "import socket, sys; parent = socket.socket(fileno=int(sys.argv[-1])); print('no library', flush=True);"
        f"parent.sendall({hello!r}); parent.recv(1); print('a secret')"
    )
    joining = Joiner(Config(state_dir=tmp_path, group_listen="127.0.0.1:0"), KEY)
    monkeypatch.setattr(joiner, "engine_command", lambda _: [sys.executable, "-c", code])
    noted = joining._note

    def note(event: ipc.Event) -> None:
        noted(event)
        assert joining._engine is not None
        joining._engine.send(ipc.Command(list_models=pb.ListModelsRequest()))  # it may go on

    monkeypatch.setattr(joining, "_note", note)
    connection, own = socket.socketpair()
    for end in (connection, own):
        end.setblocking(False)
    with capture_logs() as logs:
        answering = asyncio.create_task(joining._answer(connection, "10.0.0.1"))
        await call(own, KEY, 1, 2)
        await answering
    own.close()
    lines = [line.get("line") for line in logs if line["event"] == "engine_output"]
    assert len(lines) == 2
    assert "a secret" not in lines


async def test_strangers_do_not_bar_the_first_rank(tmp_path: Path) -> None:
    """Connections that prove nothing give way to the next one, which has the key."""
    loop = asyncio.get_running_loop()
    with ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        joining = Joiner(Config(state_dir=tmp_path), KEY)
        accepting = asyncio.create_task(joining._accept(listener))
        for _ in range(MOST_STRANGERS + 3):
            stranger = held.enter_context(socket.create_connection(listener.getsockname()))
            stranger.setblocking(False)
        connection = held.enter_context(socket.socket())
        connection.setblocking(False)
        await loop.sock_connect(connection, listener.getsockname())
        assert (await call(connection, KEY, 0, 0)).greeting.versions
        assert len(joining._strangers) <= MOST_STRANGERS
        accepting.cancel()
        with suppress(asyncio.CancelledError):
            await accepting


async def test_hangup_reopens_the_log_of_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever rotates logs sends it. By default it would end this process, and its group with it."""
    reopened = asyncio.Event()
    monkeypatch.setattr(logs, "configure", lambda *_: reopened.set())
    joining = asyncio.create_task(Joiner(Config(state_dir=tmp_path, group_listen="127.0.0.1:0"), KEY).serve())
    async with asyncio.timeout(60):
        while presence.find(tmp_path / presence.NAME) is None:  # noqa: ASYNC110 - a file that appears sends no event
            await asyncio.sleep(0.01)
        assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGHUP)
        await reopened.wait()
        assert not joining.done()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await joining == 0


async def test_state_that_cannot_be_written_refuses_a_rank_in_a_sentence(tmp_path: Path) -> None:
    """It is a matter of the configuration, and no bug."""
    (tmp_path / presence.NAME).mkdir()
    with pytest.raises(ConfigError, match=r"join\.json cannot be written \(Is a directory\); mend that, or give"):
        await Joiner(Config(state_dir=tmp_path, group_listen="127.0.0.1:0"), KEY).serve()


class Lock:
    """A wake lock that records what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.taken = asyncio.Event()

    def take(self) -> None:
        self.asked.append("take")
        self.taken.set()

    def release(self) -> None:
        self.asked.append("release")


async def test_rank_of_a_group_keeps_its_machine_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first machine gets the calls. A rank that computes for minutes would doze off, and end the group."""
    lock = Lock()
    joining = Joiner(Config(state_dir=tmp_path, group_listen="127.0.0.1:0"), KEY, lock)
    code = "import socket, sys; socket.socket(fileno=int(sys.argv[-1])).recv(1)"
    monkeypatch.setattr(joiner, "engine_command", lambda _: [sys.executable, "-c", code])

    async def called(ranks: int) -> asyncio.Task[None]:
        connection, own = socket.socketpair()
        for end in (connection, own):
            end.setblocking(False)
        answering = asyncio.create_task(joining._answer(connection, "10.0.0.1"))
        await call(own, KEY, ranks - 1 if ranks else 0, ranks)
        own.close()
        return answering

    async with asyncio.timeout(60):
        await (await called(0))
        assert lock.asked == [], "a measurement makes it no rank"
        answering = await called(2)
        await lock.taken.wait()
        assert joining._engine is not None
        joining._engine.kill()
        await answering
    assert lock.asked == ["take", "release"]


async def test_new_group_in_place_of_the_old_keeps_the_machine_awake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine of the old one ends after that of the new one has begun."""
    lock = Lock()
    joining = Joiner(Config(state_dir=tmp_path, group_listen="127.0.0.1:0"), KEY, lock)
    code = "import socket, sys; socket.socket(fileno=int(sys.argv[-1])).recv(1)"
    monkeypatch.setattr(joiner, "engine_command", lambda _: [sys.executable, "-c", code])
    answering = []
    async with asyncio.timeout(60):
        for _ in range(2):
            connection, own = socket.socketpair()
            for end in (connection, own):
                end.setblocking(False)
            lock.taken.clear()
            answering.append(asyncio.create_task(joining._answer(connection, "10.0.0.1")))
            await call(own, KEY, 1, 2)
            await lock.taken.wait()
            own.close()
        await answering[0]
        assert lock.asked == ["take", "take"]
        assert joining._engine is not None
        joining._engine.kill()
        await answering[1]
    assert lock.asked[2:] == ["release"]
