"""A trial that fails leaves what explains it: its daemon's log, and the words of a daemon that ends at its start."""

from __future__ import annotations

import json
import re
import socket as sockets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.doctor import trial
from daemon.doctor.finding import Finding, Verdict
from daemon.doctor.system import System


@pytest.fixture(name="kept")
def kept_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which logs of trials that failed are kept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def log_of(finding: Finding) -> Path:
    """Return the file that a fix names."""
    named = re.search(r"the log of the trial is in (\S+)$", finding.fix)
    assert named is not None, finding.fix
    return Path(named[1])


def test_doctor_quotes_a_trial_daemon_that_ends_at_its_start(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is gone then, so its words are told, and are in a file that stays."""
    program = folder / "python"
    program.write_text("#!/bin/sh\necho before >&2\necho there is no room >&2\nexit 3\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    none, ended = trial.trial(folder / "s.sock", System())
    assert none.verdict is Verdict.SKIPPED
    assert (ended.check, ended.verdict) == ("trial", Verdict.FAILED)
    assert ended.found == "its daemon ended with status 3 instead of serving: there is no room"
    assert log_of(ended).read_text() == "before\nthere is no room\n"
    assert log_of(ended).parent == kept


def test_doctor_keeps_the_log_of_a_trial_that_fails(folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A passed check names no log; the daemon of the trial has written one of JSON lines."""

    def differs(*_: object, **__: object) -> Finding:
        return Finding("warm equals cold", Verdict.FAILED, "they differ", "report this")

    monkeypatch.setattr(trial, "compare", differs)
    findings = {finding.check: finding for finding in trial.trial(folder / "s.sock", System())}
    lines = [json.loads(line) for line in log_of(findings["warm equals cold"]).read_text().splitlines()]
    assert {"serving", "rpc"} <= {line["event"] for line in lines}
    assert (findings["end"].verdict, findings["end"].fix) == (Verdict.OK, "")
    assert len([*kept.glob("*.log")]) == 1


@pytest.fixture(name="silent")
def silent_listener(folder: Path) -> Iterator[Path]:
    """Yield a socket on which a process listens that answers nothing, as a daemon that is stopped does."""
    path = folder / "s.sock"
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        yield path


def test_doctor_fails_a_daemon_that_gives_no_answer(silent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for one that does not run: the fix is another."""
    monkeypatch.setattr(trial, "STATS_SECONDS", 0.5)
    (finding,) = trial.running(silent)
    assert (finding.check, finding.verdict) == ("running daemon", Verdict.FAILED)
    assert finding.found.startswith("it gives no figures: ")
    assert "mlx-sidecar service restart" in finding.fix


def test_doctor_skips_a_socket_without_a_listener(silent: Path) -> None:
    """A file is left over by a daemon that was killed."""
    left_over = silent.with_name("left.sock")
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(str(left_over))
    (finding,) = trial.running(left_over)
    assert (finding.verdict, finding.found) == (Verdict.SKIPPED, f"none at {left_over}")
