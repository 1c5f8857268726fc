"""Logs: one JSON object a line, or text on a terminal, for our events and for those of libraries."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from daemon.shared import logs


class _Stderr(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


def _replace_stderr(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> _Stderr:
    # Not sys.stderr itself: pytest replaces it between the fixtures and the test.
    stream = _Stderr(terminal)
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=stream, exc_info=sys.exc_info))
    return stream


@pytest.fixture(name="stderr")
def _stderr(monkeypatch: pytest.MonkeyPatch) -> _Stderr:
    return _replace_stderr(monkeypatch, terminal=False)


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    level = logging.getLogger().level
    shown = warnings.showwarning
    yield
    logs._install([])
    logging.getLogger().setLevel(level)
    warnings.showwarning = shown
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def test_log_line_is_json_with_level_and_context(stderr: _Stderr) -> None:
    logs.configure("info", None)
    structlog.contextvars.bind_contextvars(request_id="r-1")

    structlog.get_logger("daemon.server.app").info("started", pid=7)

    (line,) = stderr.lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {
        "event": "started",
        "pid": 7,
        "level": "info",
        "logger": "daemon.server.app",
        "request_id": "r-1",
    }


def test_log_lines_begin_with_time_level_and_event(stderr: _Stderr) -> None:
    """And then have their fields in one order, whatever order a call has bound them in: an eye finds them again."""
    logs.configure("info", None)
    fields = {"model": "m", "duration_s": 0.5, "code": "OK", "cached_tokens": 3}
    for names in (list(fields), list(reversed(fields))):
        structlog.get_logger("daemon").info("rpc", **{name: fields[name] for name in names})

    orders = [list(line) for line in stderr.lines()]
    assert orders == [["timestamp", "level", "event", "code", "model", "cached_tokens", "duration_s", "logger"]] * 2


@pytest.mark.parametrize("name", ["grpc._cython", "huggingface_hub.file_download", "mlx_lm", "asyncio"])
def test_library_logs_have_the_same_form(stderr: _Stderr, name: str) -> None:
    logs.configure("info", None)
    structlog.contextvars.bind_contextvars(rpc="Stats")

    logging.getLogger(name).warning("slow by %d ms", 5)

    (line,) = stderr.lines()
    assert line.pop("timestamp")
    assert re.fullmatch(r"test_logs:\d+", line.pop("source"))
    assert line == {"event": "slow by 5 ms", "level": "warning", "logger": name, "rpc": "Stats"}


def test_library_log_handlers_duplicate_no_line(stderr: _Stderr) -> None:
    library = logging.getLogger("huggingface_hub")
    library.addHandler(logging.StreamHandler())

    logs.configure("info", None)
    library.warning("once")

    assert len(stderr.lines()) == 1


def test_log_lines_below_the_level_are_dropped(stderr: _Stderr) -> None:
    logs.configure("warning", None)

    structlog.get_logger("daemon").info("no")
    logging.getLogger("asyncio").info("no")
    structlog.get_logger("daemon").warning("yes")

    assert [line["event"] for line in stderr.lines()] == ["yes"]


def test_debug_level_excludes_http_library_logs(stderr: _Stderr) -> None:
    logs.configure("debug", None)

    structlog.get_logger("daemon").debug("ours")
    logging.getLogger("httpx").info("chatter")

    assert [line["event"] for line in stderr.lines()] == ["ours"]


def test_reconfiguring_logs_replaces_the_set_up(stderr: _Stderr) -> None:
    logs.configure("error", None)
    logs.configure("info", None)

    structlog.get_logger("daemon").info("once")

    assert len(stderr.lines()) == 1


def test_terminal_log_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = _replace_stderr(monkeypatch, terminal=True)
    logs.configure("info", None)

    structlog.get_logger("daemon").info("started", pid=7)

    assert "started" in stderr.getvalue()
    assert not stderr.getvalue().startswith("{")


@pytest.mark.parametrize(("variable", "coloured"), [("", True), ("1", False)])
def test_terminal_log_obeys_no_color(monkeypatch: pytest.MonkeyPatch, variable: str, coloured: bool) -> None:
    """As commands do."""
    stderr = _replace_stderr(monkeypatch, terminal=True)
    monkeypatch.setenv("NO_COLOR", variable)
    logs.configure("info", None)

    structlog.get_logger("daemon").warning("started", pid=7)

    assert ("\x1b[" in stderr.getvalue()) == coloured


def _log_failure_with_a_secret() -> None:
    secret = "my " + "prompt"
    try:
        raise RuntimeError(secret)
    except RuntimeError:
        structlog.get_logger("daemon").exception("failed")


@pytest.mark.parametrize("terminal", [False, True])
def test_log_tracebacks_hide_messages_and_locals(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stderr = _replace_stderr(monkeypatch, terminal)
    logs.configure("info", None)

    _log_failure_with_a_secret()

    assert "RuntimeError" in stderr.getvalue()
    assert "in _log_failure_with_a_secret" in stderr.getvalue()
    assert "my prompt" not in stderr.getvalue()
    assert terminal or len(stderr.lines()) == 1


def test_python_warnings_are_logged_without_text(stderr: _Stderr) -> None:
    with warnings.catch_warnings():
        logs.configure("info", None)
        warnings.simplefilter("always")
        warnings.warn("a secret", DeprecationWarning, stacklevel=1)

    (line,) = stderr.lines()
    assert (line["event"], line["error"]) == ("library_warning", "DeprecationWarning")
    assert re.fullmatch(r"test_logs\.py:\d+", line["source"])
    assert "secret" not in stderr.getvalue()


def test_log_file_is_private_and_stderr_stays_empty(stderr: _Stderr, tmp_path: Path) -> None:
    file = tmp_path / "logs" / "daemon.log"
    logs.configure("info", file)

    structlog.get_logger("daemon").info("started")

    assert json.loads(file.read_text())["event"] == "started"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stderr.getvalue() == ""


def test_terminal_shows_the_lines_of_the_log_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stderr = _replace_stderr(monkeypatch, terminal=True)
    logs.configure("info", tmp_path / "log")

    structlog.get_logger("daemon").info("started")

    assert "started" in stderr.getvalue()
    assert json.loads((tmp_path / "log").read_text())["event"] == "started"


def test_rotated_log_files_are_private(stderr: _Stderr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_FILE_BYTES", 300)
    file = tmp_path / "log"
    file.touch(mode=0o644)
    logs.configure("info", file)

    for number in range(30):
        structlog.get_logger("daemon").info("a line", blocks=number)

    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == ["log", "log.1", "log.2", "log.3", "log.4", "log.5"]
    assert {stat.S_IMODE(part.stat().st_mode) for part in parts} == {0o600}


def test_log_file_of_another_process_is_left_alone(stderr: _Stderr, tmp_path: Path) -> None:
    """Two processes would rotate it under each other: a daemon and `join` of one machine read the same log_file."""
    file = tmp_path / "log"
    with file.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        logs.configure("info", file, wait=0.0)
        structlog.get_logger("daemon").info("started")
        assert file.read_text() == ""
        assert "another process writes it; each needs a log_file of its own" in stderr.getvalue()
        assert '"event": "started"' in stderr.getvalue()

    for _ in range(2):  # as at a SIGHUP
        logs.configure("info", file, wait=0.0)
    structlog.get_logger("daemon").info("again")
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["again"]


def test_unwritable_log_file_falls_back_to_stderr(stderr: _Stderr, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    logs.configure("info", tmp_path / "f" / "log")

    structlog.get_logger("daemon").info("one")
    structlog.get_logger("daemon").info("two")

    report, *lines = stderr.getvalue().splitlines()
    assert report.startswith(f"mlx-sidecar: the log file {tmp_path}/f/log cannot be written (")
    assert report.endswith("; stderr gets the log instead")
    assert [json.loads(line)["event"] for line in lines] == ["one", "two"]


def test_full_log_disk_is_reported_once(stderr: _Stderr) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    handler = logs._open_file(full)
    assert isinstance(handler, logging.StreamHandler)
    logs._install([handler])

    for _ in range(3):
        logging.getLogger("daemon").warning("lost")

    why = "No space left on device); its lines are lost until it can be"
    report = f"mlx-sidecar: the log file /dev/full cannot be written ({why}\n"
    assert stderr.getvalue() == report

    full_stream, handler.stream = handler.stream, io.StringIO()
    logging.getLogger("daemon").warning("there is room again")
    assert "there is room again" in handler.stream.getvalue()
    handler.stream = full_stream
    logging.getLogger("daemon").warning("lost once more")
    assert stderr.getvalue() == 2 * report


class _FullStderr(_Stderr):
    """A file on a full disk."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_of_log_and_stderr_fails_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a service of macOS both are on one disk. The line is logged at a rotation, which makes a new file."""

    def full(file: logs._PrivateFile, path: str, flags: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=_FullStderr(terminal=False), exc_info=sys.exc_info))
    monkeypatch.setattr(logs, "MAX_FILE_BYTES", 1)
    logs.configure("info", tmp_path / "log")
    structlog.get_logger("daemon").info("kept")
    monkeypatch.setattr(logs._PrivateFile, "_open_private", full)
    structlog.get_logger("daemon").info("lost")
    assert json.loads((tmp_path / "log.1").read_text())["event"] == "kept"
    assert not (tmp_path / "log").exists()
