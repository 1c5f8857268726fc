"""Stopped processes: when a process goes on after a stop, no limit of time counts the stop against it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_sidecar import Finished
from tests.faults.watch import ask
from tests.support.daemons import RunningDaemon, alive, wait_until

Start = Callable[..., RunningDaemon]

LIMITS = {"SILENT_SECONDS": 3.0, "STALLED_SECONDS": 2.0, "STUCK_SECONDS": 4.0}
"""Of an engine's signs of life, by the names of their constants."""
STOPPED_SECONDS = 6.0
"""Longer than each of the limits above; what is waited for here is time itself."""


def _command(*more: str, **limits: float) -> list[str]:
    given = {f"server.supervision.vitals.{name}": value for name, value in LIMITS.items()}
    given |= {f"server.supervision.supervisor.{name}": value for name, value in limits.items()}
    return [sys.executable, "-m", "tests.attacks.serve_impatient", json.dumps(given), *more]


@contextmanager
def _stopped(*pids: int) -> Iterator[None]:
    """Stop processes for longer than any limit, as Ctrl-Z, a debugger or a frozen container does."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
        time.sleep(STOPPED_SECONDS)
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def _survives(daemon: RunningDaemon, engine: int) -> None:
    """Check that the engine is the one that it was, after some rounds of its watch."""
    for _ in range(3):
        time.sleep(0.7)
        stats = ask(daemon).engine
        assert (stats.pid, stats.restarts) == (engine, 0)
    assert not [line for line in daemon.log() if line["event"] == "engine_stuck_killed"]


def test_stopped_parent_keeps_its_healthy_engine(start_daemon: Start) -> None:
    """Its heartbeats lie in the socket, unread; a stream that was open goes on."""
    daemon = start_daemon(_command("fake"))
    with daemon.client() as client, client.generate("hold", "one two") as stream:
        events = iter(stream)
        next(events)
        engine = daemon.engine_pid()
        with _stopped(daemon.process.pid):
            pass
        _survives(daemon, engine)
        assert client.complete("ok", "one two").text == "one two"
    assert daemon.stop() == 0


def test_stream_continues_after_its_parent_was_stopped(start_daemon: Start) -> None:
    """With the real engine, which generated meanwhile: every token arrives."""
    daemon = start_daemon(_command())
    with daemon.client() as client, client.generate("embedded", [5] * 20, max_tokens=600, ignore_eos=True) as stream:
        events = iter(stream)
        next(events)
        engine = daemon.engine_pid()
        with _stopped(daemon.process.pid):
            pass
        *_, last = events
        assert isinstance(last, Finished)
        assert last.usage.completion_tokens == 600
        _survives(daemon, engine)
    assert daemon.stop() == 0


def test_daemon_continues_after_all_processes_stopped(start_daemon: Start) -> None:
    """That is Ctrl-Z and fg: neither the silence nor the step in which the engine was stopped counts."""
    daemon = start_daemon(_command())
    with daemon.client() as client, client.generate("embedded", [5] * 20, max_tokens=600, ignore_eos=True) as stream:
        events = iter(stream)
        next(events)
        engine = daemon.engine_pid()
        with _stopped(daemon.process.pid, engine):
            pass
        *_, last = events
        assert isinstance(last, Finished)
        assert last.usage.completion_tokens == 600
        _survives(daemon, engine)
    assert daemon.stop() == 0


def test_an_engine_that_hangs_is_still_killed(start_daemon: Start) -> None:
    """A parent that watches all the time sees the silence of one that does not run."""
    daemon = start_daemon(_command("fake"))
    with daemon.client() as client:
        assert client.complete("ok", "one").text == "one"
        engine = daemon.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        wait_until(lambda: ask(daemon).engine.restarts == 1, "the silent engine is replaced")
        assert client.complete("ok", "two").text == "two"
    assert not alive(engine)
    assert daemon.stop() == 0


def test_stopped_engine_start_is_not_killed(start_daemon: Start, folder: Path) -> None:
    """The limit of its start is time that the parent watched, too."""
    warm = folder / "warm"
    daemon = start_daemon(_command("fake", "--warm", str(warm), START_SECONDS=5.0))
    wait_until(daemon.socket.exists, "the daemon listens")
    engine = ask(daemon).engine.pid
    with _stopped(daemon.process.pid):
        pass
    warm.touch()
    with daemon.client() as client:
        assert client.complete("ok", "one").text == "one"
    _survives(daemon, engine)
    assert daemon.stop() == 0


def test_drain_time_excludes_a_stopped_parent(start_daemon: Start) -> None:
    """A stream that ended while the parent was stopped is delivered, and not cut off."""
    daemon = start_daemon(_command(), drain_timeout="3")
    with daemon.client() as client, client.generate("embedded", [5] * 20, max_tokens=600, ignore_eos=True) as stream:
        events = iter(stream)
        next(events)
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: any(line["event"] == "draining" for line in daemon.log()), "it drains")
        with _stopped(daemon.process.pid):
            pass
        *_, last = events
        assert isinstance(last, Finished)
    assert daemon.wait() == 0
    assert [line["status"] for line in daemon.log() if line["event"] == "engine_stopped"] == [0]
