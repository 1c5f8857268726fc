"""When a person is asked whether to start a daemon, and when nothing is started."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.cli import serving, starting
from daemon.cli.session import Session

SOCKET = Path("/nowhere/s.sock")


class World:
    """A clock that only sleeps move, a daemon that listens at some time, and what was asked and started."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, listens_at: float, locked: bool, terminal: bool, yes: bool
    ) -> None:
        self.now = 0.0
        self.asked_at: list[float] = []
        self.started: list[Path] = []
        replaced: dict[str, Callable[..., object]] = {
            "listens": lambda path: self.now >= listens_at,
            "holder": lambda path: 77 if locked else None,
            "stdin_is_terminal": lambda: terminal,
            "stderr_is_terminal": lambda: terminal,
            "start": lambda config, path, service: self.started.append(path),
        }
        for name, value in replaced.items():
            monkeypatch.setattr(starting, name, value)
        monkeypatch.setattr(starting, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep))
        monkeypatch.setattr(starting, "click", SimpleNamespace(confirm=self._confirm))
        self._yes = yes

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _confirm(self, question: str, **options: object) -> bool:
        assert (question, options) == ("No daemon is running. Start one?", {"default": True, "err": True})
        self.asked_at.append(self.now)
        return self._yes


@pytest.mark.parametrize(
    ("listens_at", "locked", "asked_after", "started"),
    [
        (0.0, False, None, False),  # it runs
        (1.5, False, None, False),  # it was just coming up
        (8.0, True, None, False),  # it has its lock and is slow
        (8.0, False, 2.0, True),
        (99.0, True, 10.0, True),  # it has its lock and hangs
    ],
)
def test_start_question_comes_after_the_wait(
    monkeypatch: pytest.MonkeyPatch, listens_at: float, locked: bool, asked_after: float | None, started: bool
) -> None:
    """The question comes after the client's own wait; a daemon that holds the lock is waited for longer."""
    world = World(monkeypatch, listens_at, locked, terminal=True, yes=True)

    starting.ensure(Session(), SOCKET, ask=True)

    assert world.asked_at == ([] if asked_after is None else [pytest.approx(asked_after, abs=0.06)])
    assert world.started == ([SOCKET] if started else [])


@pytest.mark.parametrize(
    ("ask", "terminal", "as_json"), [(False, True, False), (True, False, False), (True, True, True)]
)
def test_start_question_needs_a_terminal_and_a_run(
    monkeypatch: pytest.MonkeyPatch, ask: bool, terminal: bool, as_json: bool
) -> None:
    """Without a question there is no wait either: the call that follows has its own."""
    world = World(monkeypatch, 99.0, locked=False, terminal=terminal, yes=True)
    session = Session()
    session.as_json = as_json

    starting.ensure(session, SOCKET, ask)

    assert (world.now, world.asked_at, world.started) == (0.0, [], [])


@pytest.mark.parametrize("running", [False, True])
def test_start_flag_starts_a_daemon_without_a_question(monkeypatch: pytest.MonkeyPatch, running: bool) -> None:
    world = World(monkeypatch, 0.0 if running else 99.0, locked=False, terminal=True, yes=False)
    session = Session()
    session.start = True

    starting.ensure(session, SOCKET, ask=True)

    assert (world.asked_at, world.started) == ([], [] if running else [SOCKET])


def test_declined_start_question_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 99.0, locked=False, terminal=True, yes=False)

    starting.ensure(Session(), SOCKET, ask=True)

    assert (len(world.asked_at), world.started) == (1, [])


def test_no_daemon_is_started_from_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of the daemon there; the call that follows tells that the system forbids it."""

    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("daemon.cli.serving.sockets.socket", forbidden)
    assert serving.listens(tmp_path / "s.sock")
