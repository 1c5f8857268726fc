"""The door's process is kept running: started with a bound socket, started again, and ended with the daemon."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.server.http_listener import default_path, listen_at, listen_on
from daemon.server.singleton import AlreadyRunning
from daemon.server.supervision import door_probe, http_door
from daemon.server.supervision.http_door import DoorState, HttpDoor
from daemon.server.supervision.start_log import HOUR_SECONDS
from daemon.shared.config import Config
from tests.support.daemons import alive, listens

PROGRAM = """
import json, os, socket, sys
listener = socket.socket(fileno=int(sys.argv[-1]))
print(json.dumps({"event": "http_serving", "level": "info"}), flush=True)
what = sys.argv[1]
if what == "die":
    sys.exit(3)
if what == "stay":
    sys.stdin.read()
    sys.exit(0)
while True:
    connection, _ = listener.accept()
    connection.sendall(str(os.getpid()).encode())
    os._exit(7)
"""
"""A door: dies at once, stays until its standard input ends, or dies after one connection."""


def config(folder: Path, listen: str = "unix") -> Config:
    """Return a configuration whose directory is private."""
    return Config(socket=folder / "run" / "sidecar.sock", state_dir=folder, http_listen=listen)


@asynccontextmanager
async def running(given: Config, what: str = "stay") -> AsyncIterator[HttpDoor]:
    """Run a door until the end of the block."""
    door = HttpDoor(given, time.monotonic, [sys.executable, "-c", PROGRAM, what])
    door.start()
    yield door
    await door.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - a process that starts sends no event
            await asyncio.sleep(0.01)


async def test_door_is_off_by_default(folder: Path) -> None:
    """Nothing listens, and no process runs."""
    async with running(config(folder, "")) as door:
        assert (door.state, door.pid, door.address) == (DoorState.OFF, 0, "")


async def test_door_serves_on_a_private_socket(folder: Path) -> None:
    """Beside the daemon's own; it is removed at the end."""
    path = default_path(config(folder).socket)
    async with running(config(folder)) as door:
        await until(lambda: door.state is DoorState.SERVING)
        assert door.stats().address == str(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert listens(path)
        pid = door.pid
    assert not alive(pid)
    assert not path.exists()
    assert door.stats().pid == 0


async def test_client_waits_while_the_door_is_started_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket stays, so that a connection is taken by the next one."""
    monkeypatch.setattr(http_door, "FIRST_BACKOFF", 0.01)
    async with running(config(folder), "once") as door:
        await until(lambda: door.state is DoorState.SERVING)
        answers = []
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(door.address)
            answers.append(await reader.read())
            writer.close()
        await until(lambda: door.restarts >= 2)
    assert len(set(answers)) == 3


async def test_removed_socket_of_the_door_is_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next door: one on a socket without a name would be killed as silent, again and again."""
    monkeypatch.setattr(http_door, "FIRST_BACKOFF", 0.01)
    path = default_path(config(folder).socket)
    async with running(config(folder)) as door:
        await until(lambda: door.state is DoorState.SERVING)
        path.unlink()
        os.kill(door.pid, signal.SIGKILL)
        await until(path.exists)
        assert listens(path)
        await until(lambda: door.state is DoorState.SERVING)


async def test_pause_of_the_door_doubles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the last; so a door that cannot start costs little."""
    pauses: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds >= 1:
            pauses.append(seconds)
        await real(0)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(door_probe, "until_silent", never)
    monkeypatch.setattr(http_door, "LAST_BACKOFF", 4.0)
    async with running(config(folder), "die") as door:
        async with asyncio.timeout(60):
            while len(pauses) < 4:
                await real(0.01)
        assert door.restarts >= 3
    assert pauses[:4] == [1.0, 2.0, 4.0, 4.0]


async def test_door_with_an_unfit_token_is_told_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cause; and the log tells when it is over."""
    monkeypatch.setattr(http_door, "FIRST_BACKOFF", 0.01)
    unfit = folder / "unfit"
    unfit.touch()
    begins = (
        "import json, os, sys\n"
        f"if os.path.exists({str(unfit)!r}):\n"
        "    print(json.dumps({'event': 'http_token_unfit', 'level': 'error', 'error': 'has 3 characters'}))\n"
        "    sys.exit(1)\n"
    )
    door = HttpDoor(config(folder), time.monotonic, [sys.executable, "-c", begins + PROGRAM, "stay"])
    with capture_logs() as logs:
        door.start()
        await until(lambda: door.restarts >= 2)
        unfit.unlink()
        await until(lambda: door.state is DoorState.SERVING)
        await door.stop()
    told = [(line["event"], line.get("error"), line.get("starts")) for line in logs if line["event"] != "http_serving"]
    assert told[:2] == [("http_token_unfit", "has 3 characters", None), ("http_ended", None, 1)]
    assert [(event, starts is not None and starts >= 2) for event, _, starts in told[2:]] == [
        ("http_starts_again", True)
    ]


async def test_door_that_hangs_again_and_again_is_told_hourly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it serves in between; an hour without a hang is the end of it."""
    now, hangs = 0.0, 3

    async def hanging(_: str, answered: Callable[[], None]) -> None:
        nonlocal hangs
        await until(lambda: door.state is DoorState.SERVING)
        hangs -= 1
        if hangs < 0:
            answered()
            await asyncio.Event().wait()

    monkeypatch.setattr(http_door, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(door_probe, "until_silent", hanging)
    door = HttpDoor(config(folder), lambda: now, [sys.executable, "-c", PROGRAM, "stay"])
    with capture_logs() as logs:
        door.start()
        await until(lambda: hangs < 0)
        assert [line["event"] for line in logs] == ["http_serving", "http_hung", "http_ended", "http_serving"]
        now += HOUR_SECONDS
        door._serves()
        door._serves()
        await door.stop()
    (over,) = (line for line in logs[4:])
    assert (over["event"], over["starts"]) == ("http_starts_again", 3)


async def test_port_in_use_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon serves meanwhile; its Stats tell that HTTP does not, and its log says once where and why."""
    monkeypatch.setattr(http_door, "FIRST_BACKOFF", 0.01)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with capture_logs() as logs:
            async with running(config(folder, f"127.0.0.1:{port}")) as door:
                await until(lambda: door.restarts >= 2)
                assert door.address == ""
                other.close()
                await until(lambda: door.state is DoorState.SERVING)
                assert door.address == f"127.0.0.1:{port}"
    told = [(line["event"], line["error"], line["address"]) for line in logs if line["log_level"] == "error"]
    assert told == [("http_start_failed", "OSError: EADDRINUSE", f"127.0.0.1:{port}")]


async def test_library_fault_at_door_start_is_retried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as asyncio, which starts a thread for each process on a Mac."""
    monkeypatch.setattr(http_door, "FIRST_BACKOFF", 0.01)
    errors = [RuntimeError("can't start new thread")]
    async with running(config(folder)) as door:
        spawn = door._spawn

        async def failing() -> asyncio.subprocess.Process:
            if errors:
                raise errors.pop()
            return await spawn()

        monkeypatch.setattr(door, "_spawn", failing)
        await until(lambda: door.state is DoorState.SERVING)
    assert not errors
    assert door.restarts == 1


async def test_door_that_does_not_end_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that it has to end its answers."""
    monkeypatch.setattr(http_door, "STOP_SECONDS", 0.05)
    async with running(config(folder), "once") as door:
        await until(lambda: door.state is DoorState.SERVING)
        pid = door.pid
    assert not alive(pid)


@pytest.mark.parametrize("listen", ["unix", "127.0.0.1:0"])
async def test_door_that_hangs_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch, listen: str) -> None:
    """The real one, stopped while its process and its socket are there; one that answers is left alone."""
    looks = count_looks(monkeypatch)
    monkeypatch.setattr(http_door, "FIRST_BACKOFF", 0.01)
    door = HttpDoor(config(folder, listen), time.monotonic, http_door.door_command(config(folder)))
    door.start()
    await until(lambda: len(looks) >= 3)
    pid = door.pid
    assert door.restarts == 0
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(door_probe, "SILENT_SECONDS", 0.5)
    await until(lambda: door.restarts > 0)
    monkeypatch.setattr(door_probe, "SILENT_SECONDS", 60.0)
    seen = len(looks)
    await until(lambda: len(looks) > seen)
    assert door.pid != pid
    assert not alive(pid)
    await door.stop()


async def test_door_without_its_socket_gets_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe finds that no client reaches the door, and the next one listens under the name again."""
    looks = count_looks(monkeypatch)
    monkeypatch.setattr(http_door, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(door_probe, "AGAIN_SECONDS", 0.01)
    door = HttpDoor(config(folder), time.monotonic, http_door.door_command(config(folder)))
    path = default_path(config(folder).socket)
    door.start()
    await until(lambda: bool(looks))
    path.unlink()
    monkeypatch.setattr(door_probe, "SILENT_SECONDS", 0.5)
    await until(lambda: door.restarts > 0)
    monkeypatch.setattr(door_probe, "SILENT_SECONDS", 60.0)
    await until(lambda: listens(path) and looks[-1])
    await door.stop()
    assert not path.exists()


async def test_door_leaves_signals_to_the_parent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, a unit's stop, and a terminal that closes: the parent drains, and answers over HTTP end well."""
    looks = count_looks(monkeypatch)
    door = HttpDoor(config(folder), time.monotonic, http_door.door_command(config(folder)))
    door.start()
    await until(lambda: door.state is DoorState.SERVING)
    pid = door.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    seen = len(looks)
    await until(lambda: len(looks) > seen + 1)
    assert (door.pid, door.restarts) == (pid, 0)
    await door.stop()


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let the door be asked often, and return the list of its answers to come."""
    answers: list[bool] = []
    look = door_probe._answers

    async def counted(address: str) -> bool:
        answers.append(await look(address))
        return answers[-1]

    monkeypatch.setattr(door_probe, "_answers", counted)
    monkeypatch.setattr(door_probe, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(door_probe, "SILENT_SECONDS", 60.0)
    return answers


async def test_refused_connection_is_no_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again until the time without an answer is over."""
    looks = count_looks(monkeypatch)
    monkeypatch.setattr(door_probe, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(door_probe, "SILENT_SECONDS", 0.3)
    async with asyncio.timeout(60):
        await door_probe.until_silent(str(folder / "nothing.sock"), lambda: None)
    assert looks
    assert not any(looks)


def test_listener_has_one_owner(folder: Path) -> None:
    """A second one is refused while the first lives; a stale socket file is replaced."""
    path = folder / "run" / "http.sock"
    first = listen_at(path)
    with pytest.raises(AlreadyRunning):
        listen_at(path)
    first.socket.close()  # as a killed process leaves it
    first._lock.release()  # type: ignore[union-attr]
    second = listen_at(path)
    second.close()
    second.close()
    assert not path.exists()


def test_listener_on_a_port_is_loopback_only() -> None:
    """Port 0 takes a free one."""
    listener = listen_on(0)
    assert listener.socket.getsockname()[0] == "127.0.0.1"
    assert listener.address == f"127.0.0.1:{listener.socket.getsockname()[1]}"
    listener.close()


async def test_process_without_descriptors_blames_no_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """The door is sound, and answers clients: to kill it would cut their streams off."""

    async def full(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(door_probe, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(asyncio, "open_unix_connection", full)
    answered = asyncio.Event()
    probe = asyncio.create_task(door_probe.until_silent("/nowhere", answered.set))
    async with asyncio.timeout(60):
        await answered.wait()
    probe.cancel()
