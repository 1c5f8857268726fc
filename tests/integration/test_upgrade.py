"""A daemon whose program is replaced while it runs serves with what it has, and starts no engine of another version."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from daemon.server.app import Daemon
from daemon.server.supervision.supervisor import State
from daemon.shared.config import Config
from tests.support.daemons import RunningDaemon, wait_until

PROGRAM = """
import runpy, sys
sys.executable = sys.argv.pop(1)
runpy.run_module("tests.support.serve_fake", run_name="__main__")
"""
"""A daemon that takes the file that it is given for its interpreter."""


def test_daemon_of_a_removed_program_ends_with_its_engine(folder: Path) -> None:
    """launchd and systemd start what is there now. It would be alive without an engine for good."""
    interpreter = folder / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    interpreter.chmod(0o700)
    daemon = RunningDaemon.start(folder, [sys.executable, "-c", PROGRAM, str(interpreter)])
    try:
        with daemon.client() as client:
            first = client.stats().engine.pid
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: client.stats().engine.pid not in (0, first), "the engine is started again")
            interpreter.unlink()
            assert client.complete("ok", "one", max_tokens=1).usage.completion_tokens == 1
            os.kill(client.stats().engine.pid, signal.SIGKILL)
        assert daemon.wait() == 1
    finally:
        daemon.stop()
    events = [line["event"] for line in daemon.log() if line["level"] == "error"]
    assert events[:2] == ["engine_died", "program_replaced"]
    assert not daemon.socket.exists()


def test_daemon_tells_the_version_that_took_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its log; and it goes on as long as its engine does."""
    daemon = Daemon(Config())
    monkeypatch.setattr(daemon, "_program", SimpleNamespace(replaced_by=lambda: "9.9"))
    with capture_logs() as logs:
        daemon._engine_changed(State.READY)
        assert not daemon._stop.is_set()
        daemon._engine_changed(State.RESTARTING)
    assert daemon._stop.is_set()
    assert [line["version"] for line in logs if line["event"] == "program_replaced"] == ["9.9"]


def test_upgrade_in_a_back_off_ends_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that dies again and again is started after up to a minute: it would be of the new version."""
    daemon = Daemon(Config())
    answers = [None, "9.9"]
    monkeypatch.setattr(daemon, "_program", SimpleNamespace(replaced_by=lambda: answers.pop(0)))
    daemon._engine_changed(State.RESTARTING)
    assert not daemon._stop.is_set()
    daemon._engine_changed(State.STARTING)
    assert daemon._stop.is_set()
