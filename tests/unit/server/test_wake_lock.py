"""The wake lock: the machine is kept awake while calls run, and no longer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from daemon.server.wake_lock import LINGER_SECONDS, Caffeinate, NoWakeLock, Wakefulness, system_wake_lock
from tests.support.daemons import alive, wait_until


class FakeLock:
    """Records the calls of its methods."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def take(self) -> None:
        self.asked.append("take")

    def release(self) -> None:
        self.asked.append("release")


class Timer:
    """Runs the functions that are due when a test says so."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def later(self, delay: float, action: Callable[[], None]) -> Timer:
        self.due.append((delay, action))
        return self

    def cancel(self) -> None:
        self.due.clear()

    def ring(self) -> None:
        due, self.due = self.due, []
        for _, action in due:
            action()


@pytest.fixture(name="program")
def _program(tmp_path: Path) -> Path:
    """A caffeinate that writes down its arguments and descriptors, and then waits to be ended."""
    program = tmp_path / "caffeinate"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\nls /dev/fd > {tmp_path}/open\nexec sleep 1000\n')
    program.chmod(0o755)
    return program


def test_wake_lock_outlasts_the_last_call_for_a_while() -> None:
    """Calls in quick succession do not let go of it between them."""
    lock, timer = FakeLock(), Timer()
    wakefulness = Wakefulness(lock, timer.later)
    wakefulness.busy()
    wakefulness.idle()
    assert [delay for delay, _ in timer.due] == [LINGER_SECONDS]
    wakefulness.busy()
    timer.ring()
    assert lock.asked == ["take", "take"], "the second call has cancelled the release"
    wakefulness.idle()
    timer.ring()
    assert lock.asked == ["take", "take", "release"]


def test_closing_releases_the_wake_lock_at_once() -> None:
    """When the daemon ends, the machine may sleep."""
    lock, timer = FakeLock(), Timer()
    wakefulness = Wakefulness(lock, timer.later)
    wakefulness.busy()
    wakefulness.idle()
    wakefulness.close()
    timer.ring()
    assert lock.asked == ["take", "release"]


def test_caffeinate_is_one_process_tied_to_the_daemon(program: Path) -> None:
    """`-i`: idle sleep only, not the display's. `-w`: not longer than this process lives."""
    lock = Caffeinate(program)
    lock.release()
    lock.take()
    lock.take()
    said = program.with_name("said")
    wait_until(lambda: said.exists() and said.read_text().endswith("\n"), "it runs")
    assert said.read_text() == f"-i -w {os.getpid()}\n"
    pid = lock._pid
    lock.release()
    lock.release()
    assert not alive(pid)


def test_caffeinate_inherits_no_descriptor(program: Path) -> None:
    """Not even an inheritable one: the lock, or the engine's end of its socket, which would hide the engine's death."""
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    os.set_blocking(ours, False)  # a failure should not hang
    lock = Caffeinate(program)
    lock.take()
    os.close(theirs)
    assert os.read(ours, 1) == b"", "nobody else holds the other end"
    lock.release()
    os.close(ours)


def test_killed_caffeinate_is_started_again(program: Path) -> None:
    """By the next call."""
    lock = Caffeinate(program)
    lock.take()
    first = lock._pid
    os.kill(first, 9)
    wait_until(lambda: not alive(first), "it has ended")
    lock.take()
    assert lock._pid not in (0, first)
    lock.release()


def test_missing_caffeinate_is_logged_once(tmp_path: Path) -> None:
    """Calls are answered."""
    lock = Caffeinate(tmp_path / "missing")
    with structlog.testing.capture_logs() as logs:
        lock.take()
        lock.take()
        lock.release()
    assert [line["event"] for line in logs] == ["wake_lock_unavailable"]


def test_wake_lock_exists_only_on_macs() -> None:
    """A server does not doze off."""
    assert isinstance(system_wake_lock("darwin"), Caffeinate)
    assert isinstance(system_wake_lock("linux"), NoWakeLock)


def test_caffeinate_that_was_reaped_elsewhere_has_ended(program: Path) -> None:
    """An error here would be the answer to each call: the lock is taken when a first call arrives."""
    lock = Caffeinate(program)
    lock.take()
    first = lock._pid
    os.kill(first, 9)
    os.waitpid(first, 0)
    lock.take()
    second = lock._pid
    assert second not in (0, first)
    os.kill(second, 9)
    os.waitpid(second, 0)
    lock.release()
    assert lock._pid == 0


def test_descriptor_that_is_closed_meanwhile_is_no_obstacle(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC closes its own at any time. macOS starts no program that is to close one which is not open any more."""
    spawn, refusals = os.posix_spawn, [errno.EBADF, errno.EBADF]

    def as_macos(*arguments: Any, **options: Any) -> int:
        if refusals:
            raise OSError(refusals.pop(), "refused")
        return spawn(*arguments, **options)

    monkeypatch.setattr(os, "posix_spawn", as_macos)
    lock = Caffeinate(program)
    with structlog.testing.capture_logs() as logs:
        lock.take()
        assert lock._pid
        lock.release()
        refusals[:] = [errno.EBADF] * 3
        lock.take()
        lock.release()
    assert [line["event"] for line in logs] == ["wake_lock_unavailable"], "it is not tried without end"
