"""Signals that a terminal sends: to the whole process group at Ctrl-C, and to the daemon when its window closes."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.running import END_SECONDS, RunningDaemon, environment, wait_until

FAKE = [sys.executable, "-m", "tests.serve_fake"]


def test_the_engine_ignores_ctrl_c_before_its_slow_imports(tmp_path: Path) -> None:
    """It gets the signal as well, and leaves the end to the parent."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text(
        "import signal\n"
        "assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
        "raise SystemExit('ignored')\n"
    )
    command = [sys.executable, "-m", "daemon.engine", "--fd", "0", "--config", "{}"]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=END_SECONDS
    )
    assert ended.stderr == "ignored\n"


def test_a_terminal_that_closes_ends_the_daemon(folder: Path) -> None:
    """Or it would go on unseen, and its log would go nowhere."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(FAKE, env=environment(folder), stderr=theirs, start_new_session=True)
    os.close(theirs)
    daemon = RunningDaemon(folder, environment(folder), process)
    with daemon.client() as client:
        client.load("ok")
        os.close(ours)
        daemon.signal(signal.SIGHUP)
        assert daemon.wait() == 0
    assert not daemon.socket.exists()


def test_without_a_terminal_a_hangup_opens_the_log_file_anew(start_daemon: Callable[..., RunningDaemon]) -> None:
    """For those who rotate it themselves."""
    daemon = start_daemon(FAKE)
    file = daemon.folder / "daemon.log"
    with daemon.client() as client:
        client.load("ok")
        file.rename(daemon.folder / "old.log")
        daemon.signal(signal.SIGHUP)
        wait_until(file.exists, "the log file is opened anew")
        client.load("ok")
    assert daemon.stop() == 0
    assert [line["rpc"] for line in daemon.log() if line["event"] == "rpc"] == ["GetOrLoad"]


def test_the_daemon_raises_its_limit_of_open_files(folder: Path) -> None:
    """A client beyond the limit would hang without a word, and a shell on macOS allows 256."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))

    process = subprocess.Popen(FAKE, env=environment(folder), preexec_fn=few)
    daemon = RunningDaemon(folder, environment(folder), process)
    clients = [daemon.client() for _ in range(80)]
    assert [client.stats().daemon.pid for client in clients] == [process.pid] * len(clients)
    for client in clients:
        client.close()
    daemon.signal(signal.SIGTERM)
    assert process.wait(END_SECONDS) == 0
