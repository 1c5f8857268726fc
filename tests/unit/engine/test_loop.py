"""The loop and the process: actions before steps, steps while there is work, and an end within two seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.engine.loop import Loop
from daemon.shared.config import Config
from daemon.shared.frames import encode_frame
from daemon.v1 import ipc_pb2 as ipc
from mlx_sidecar.v1 import sidecar_pb2 as pb


class Steps:
    """Work that takes a number of steps."""

    def __init__(self, left: int, loop: Loop, idle_seconds: float = 60.0) -> None:
        self.left = left
        self.idle_seconds = idle_seconds
        self.done: list[str] = []
        self.loop = loop
        self.ages: list[float | None] = []

    @property
    def busy(self) -> bool:
        """Whether steps are left."""
        return self.left > 0

    @property
    def pause(self) -> float:
        """None between two steps; how long it waits after the last is the test's."""
        return 0.0 if self.busy else self.idle_seconds

    def handle(self, command: str) -> None:
        """Note a command."""
        self.done.append(command)

    def step(self) -> None:
        """Do one; the last one stops the loop."""
        self.left -= 1
        self.done.append("step")
        self.ages.append(self.loop.step_age)
        if self.left <= 0:
            self.loop.stop()


def test_commands_come_before_the_next_step() -> None:
    loop = Loop(time.monotonic)
    steps = Steps(1, loop)
    loop.command("one")
    loop.post(lambda: loop.command("two"))
    loop.run(steps)
    assert steps.done == ["one", "two", "step", "step"]  # the step that stops the loop is followed by one


def test_posted_actions_run_before_the_next_step() -> None:
    """In the order in which they were posted, also those that an action posts."""
    loop = Loop(time.monotonic)
    steps = Steps(2, loop)
    loop.post(lambda: steps.done.append("first"))
    loop.post(lambda: loop.post(lambda: steps.done.append("third")))
    loop.post(lambda: steps.done.append("second"))
    loop.run(steps)
    assert steps.done[:4] == ["first", "second", "third", "step"]
    assert loop.steps == len([one for one in steps.done if one == "step"])


def test_idle_engine_loop_wakes_for_actions_and_sweeps() -> None:
    """And for nothing else."""
    loop = Loop(time.monotonic)
    steps = Steps(0, loop, 0.01)
    loop.run(steps)
    assert steps.done[0] == "step"
    patient = Loop(time.monotonic)
    threading.Timer(0.05, patient.stop).start()
    patient.run(Steps(0, patient))
    assert patient.steps == 1


def test_engine_loop_reports_when_it_is_idle() -> None:
    """When it has waited in vain, not when work or a command came."""
    idle: list[str] = []
    loop = Loop(time.monotonic, lambda: idle.append("idle"))
    loop.post(lambda: None)
    loop.run(Steps(3, loop))
    assert idle == []
    waiting = Loop(time.monotonic, lambda: idle.append("idle"))
    waiting.run(Steps(0, waiting, 0.01))
    assert idle == ["idle"]


def test_loop_that_waited_for_a_batch_is_not_idle() -> None:
    idle: list[str] = []
    loop = Loop(time.monotonic, lambda: idle.append("idle"))

    class Gathering(Steps):
        pause = 0.01

    steps = Gathering(2, loop)
    loop.run(steps)
    assert steps.done[:2] == ["step", "step"]
    assert idle == []


def test_step_age_is_known_only_during_a_step() -> None:
    """By the injected clock."""
    ticks = iter(range(100))
    loop = Loop(lambda: float(next(ticks)))
    steps = Steps(1, loop)
    assert loop.step_age is None
    loop.run(steps)
    assert steps.ages[0] == 1.0
    assert loop.step_age is None


def test_exception_of_a_step_ends_the_loop() -> None:
    """State that it left behind cannot be trusted."""
    loop = Loop(time.monotonic)
    loop.post(lambda: [].pop())
    with pytest.raises(IndexError):
        loop.run(Steps(1, loop))


@contextmanager
def engine_process() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Start the real engine and yield it with our end of its socket."""
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours, theirs, tempfile.TemporaryDirectory() as state:
        config = Config(kv_disk_mb=0, state_dir=Path(state)).to_json()
        command = [sys.executable, "-P", "-m", "daemon.engine", "--config", config, "--fd"]
        process = subprocess.Popen(
            [*command, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL
        )
        theirs.close()
        try:
            yield process, ours
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()


def received(sock: socket.socket) -> ipc.Event:
    """Return the next event."""
    header = _exactly(sock, 4)
    return ipc.Event.FromString(_exactly(sock, int.from_bytes(header, "big")))


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, "the engine is gone"
        data += part
    return data


def until_delta(sock: socket.socket) -> None:
    """Read until a first delta."""
    while not received(sock).generate.HasField("delta"):
        pass


def until_warm(sock: socket.socket) -> None:
    """Read until the engine takes commands."""
    while not (event := received(sock)).HasField("hello") or event.hello.warming:
        pass


BUSY = pb.GenerateRequest(model="embedded", text="The", max_tokens=3000, stop=pb.Stop(ignore_eos=True))


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("polite", [False, True])
def test_engine_process_exits_within_two_seconds(busy: bool, polite: bool) -> None:
    """When its parent says so, and when its parent is gone; idle, and in the middle of a stream."""
    with engine_process() as (process, sock):
        until_warm(sock)
        if busy:
            sock.sendall(encode_frame(ipc.Command(call_id=1, generate=BUSY)))
            until_delta(sock)
        if polite:
            sock.sendall(encode_frame(ipc.Command(shutdown=ipc.Shutdown())))
        else:
            sock.close()
        assert process.wait(2.0) == 0


def test_engine_process_exits_while_importing() -> None:
    """With what Python loads at that moment: no thread runs until it has."""
    with engine_process() as (process, sock):
        assert received(sock).hello.warming  # always the first frame
        sock.close()
        assert process.wait(20) == 0


def test_engine_exits_when_its_parent_sends_garbage() -> None:
    """The process ends rather than guess."""
    with engine_process() as (process, sock):
        assert received(sock).HasField("hello")
        sock.sendall(b"\xff" * 8)
        assert process.wait(5) is not None
