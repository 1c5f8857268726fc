"""Parents that are killed, anywhere: the next one serves, the engine of the dead one is gone, nothing stale is left."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from daemon.shared.failpoints import ENV
from tests.support.daemons import RunningDaemon, alive, wait_until
from tests.support.repetitions import scaled

FAKE = [sys.executable, "-m", "tests.support.serve_fake"]
CHAOS = [sys.executable, "-m", "tests.chaos.serve"]
START = ["lock.taken", "socket.bound", "socket.published"]
MOMENTS = ["serving", "streaming", "loading", "draining", *START]
"""Where a parent dies; the last ones by failpoints."""
TOLD = ["unclean_shutdown", "orphaned_engine_killed"]
"""What the log of the next one says of it."""


@contextmanager
def ending(daemon: RunningDaemon) -> Iterator[RunningDaemon]:
    """Kill a daemon at the end of a block, if it runs."""
    try:
        yield daemon
    finally:
        daemon.process.kill()
        daemon.wait()


def started(folder: Path, command: list[str], moment: str = "") -> RunningDaemon:
    """Start a daemon, that dies at a moment of its start if that is one."""
    failpoints = {ENV.removeprefix("MLX_SIDECAR_").lower(): f"{moment}=kill"} if moment in START else {}
    return RunningDaemon.start(folder, command, **failpoints)


def die(folder: Path, command: list[str], moment: str, model: str) -> int:
    """Start a parent, kill it at some moment, and return the process id of its engine; 0 if it had none yet."""
    with ending(started(folder, command, moment)) as daemon:
        if moment in START:
            assert daemon.wait() == -signal.SIGKILL
            return 0
        with daemon.client() as client:
            wait_until(lambda: client.stats().engine.pid > 0, "there is an engine")
            engine = client.stats().engine.pid
            if moment in ("streaming", "draining"):
                stream = client.generate(model, "one two three", max_tokens=3000)
                next(iter(stream))
            if moment == "loading":
                load = client.get_or_load(model)
                next(iter(load))
            if moment == "draining":
                daemon.signal(signal.SIGTERM)
            daemon.process.kill()
            daemon.wait()
            return engine


def serves(folder: Path, command: list[str], engine: int, model: str) -> None:
    """Start the next parent; it answers, and what the dead one left is gone."""
    with ending(started(folder, command)) as daemon:
        with daemon.client() as client:
            assert client.complete(model, "one two three", max_tokens=3).usage.completion_tokens == 3
            assert not (engine and alive(engine))
            assert sorted(path.name for path in daemon.socket.parent.iterdir()) == [
                "sidecar.sock",
                "sidecar.sock.lock",
            ]
        assert daemon.stop() == 0
    assert [path.name for path in daemon.socket.parent.iterdir()] == ["sidecar.sock.lock"]


def killed(folder: Path, times: int, command: list[str], held: str, answered: str) -> None:
    """Kill parents, each at a random moment, and start the next."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # noqa: T201 - shown with a failure
    rng = random.Random(seed)
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(times)]
    rng.shuffle(moments)
    for moment in moments:
        serves(folder, command, die(folder, command, moment, held), answered)


def test_killed_parent_leaves_a_startable_daemon(folder: Path) -> None:
    """The parent is killed at each of seven moments: while it starts, serves, streams, loads and drains."""
    killed(folder, len(MOMENTS), FAKE, "hold", "ok")


def test_hanging_engine_soon_follows_its_dead_parent(folder: Path) -> None:
    """
    A stopped engine does not see the end of its socket and holds the lock; the next daemon kills it and serves.

    The log file says so, which is the dead daemon's until the lock is taken.
    """
    with ending(started(folder, FAKE)) as daemon, daemon.client() as client:
        client.load("ok")
        engine = client.stats().engine.pid
        os.kill(engine, signal.SIGSTOP)
        daemon.process.kill()
        daemon.wait()
        try:
            assert alive(engine)
            serves(folder, FAKE, engine, "ok")
            told = [(line["event"], line["pid"]) for line in daemon.log() if line["event"] in TOLD]
            assert told == [("unclean_shutdown", daemon.process.pid), ("orphaned_engine_killed", engine)]
        finally:
            with suppress(ProcessLookupError):
                os.kill(engine, signal.SIGKILL)


@pytest.mark.slow
def test_five_hundred_killed_parents_leave_no_trace(folder: Path) -> None:
    """No orphaned engine, no stale file and no failed start remains."""
    killed(folder, scaled(500), FAKE, "hold", "ok")


@pytest.mark.slow
def test_thirty_killed_real_parents_leave_no_trace(folder: Path) -> None:
    """The real engine also ends with its parent during a load and during an answer."""
    killed(folder, scaled(30), CHAOS, "embedded", "embedded")
