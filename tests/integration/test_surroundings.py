"""What a daemon gets from where it was started: signals of its terminal, limits, a directory that may go."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.shared.group_signals import GROUP_SIGNALS
from mlx_sidecar import Finished
from tests.support.daemons import END_SECONDS, RunningDaemon, environment, wait_until

Launch = Callable[..., RunningDaemon]
FAKE = [sys.executable, "-m", "tests.support.serve_fake"]


@pytest.fixture(name="launch")
def _launch(folder: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """Return a function that starts a command as a daemon, with options of Popen."""
    started: list[subprocess.Popen[bytes]] = []

    def launch(command: list[str], **options: Any) -> RunningDaemon:
        environ = environment(folder)
        started.append(subprocess.Popen(command, env=environ, **options))
        return RunningDaemon(folder, environ, started[-1])

    yield launch
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("process", "library"), [("daemon.engine", "mlx/core.py"), ("daemon.http", "starlette/datastructures.py")]
)
def test_children_ignore_group_signals_before_imports(tmp_path: Path, process: str, library: str) -> None:
    """They get Ctrl-C, a hangup and a unit's SIGTERM as well, and leave the end to the parent."""
    package = (tmp_path / library).parent
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / library).write_text(
        "import signal\n"
        "ignored = {signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}\n"
        "assert ignored == {signal.SIG_IGN}\n"
        "assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()\n"
        "raise SystemExit('ignored')\n"
    )
    command = [sys.executable, "-m", process, "--fd", "0", "--config", "{}"]
    held = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)  # as the parent starts them
    try:
        ended = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=END_SECONDS,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    assert ended.stderr == "ignored\n"


def test_sigterm_to_the_process_group_drains_a_stream(launch: Launch) -> None:
    """systemd stops a unit by a SIGTERM to all its processes; a running stream still ends well."""
    daemon = launch([sys.executable, "-m", "daemon", "serve"], start_new_session=True)
    with daemon.client() as client, client.generate("embedded", [5] * 20, max_tokens=400, ignore_eos=True) as stream:
        events = iter(stream)
        next(events)
        os.killpg(daemon.process.pid, signal.SIGTERM)
        *_, last = events
    assert isinstance(last, Finished)
    assert last.usage.completion_tokens == 400
    assert daemon.wait() == 0
    assert [line["status"] for line in daemon.log() if line["event"] == "engine_stopped"] == [0]


def test_a_terminal_that_closes_ends_the_daemon(launch: Launch) -> None:
    """The daemon ends with its terminal; otherwise it would run unnoticed, with no log output."""
    ours, theirs = pty.openpty()
    daemon = launch(FAKE, stderr=theirs, start_new_session=True)
    os.close(theirs)
    with daemon.client() as client:
        client.load("ok")
        os.close(ours)
        daemon.signal(signal.SIGHUP)
        assert daemon.wait() == 0
    assert not daemon.socket.exists()


def test_hangup_without_terminal_reopens_the_log(launch: Launch) -> None:
    """SIGHUP reopens the log, for external log rotation."""
    daemon = launch(FAKE, stderr=subprocess.DEVNULL)
    file = daemon.folder / "daemon.log"
    with daemon.client() as client:
        client.load("ok")
        file.rename(daemon.folder / "old.log")
        daemon.signal(signal.SIGHUP)
        wait_until(file.exists, "the log file is opened anew")
        client.load("ok")
    assert daemon.stop() == 0
    assert [line["rpc"] for line in daemon.log() if line["event"] == "rpc"] == ["GetOrLoad"]


def test_daemon_raises_its_open_file_limit(launch: Launch) -> None:
    """A client beyond the limit would hang without a word, and a shell on macOS allows 256."""
    # By a shell: a function of this process would run in a fork of gRPC's threads, which may not live to the daemon.
    daemon = launch(["sh", "-c", 'ulimit -S -n 64; exec "$@"', "sh", *FAKE])
    clients = [daemon.client() for _ in range(80)]
    assert [client.stats().daemon.pid for client in clients] == [daemon.process.pid] * len(clients)
    for client in clients:
        client.close()
    assert daemon.stop() == 0


def test_daemon_outlives_its_working_directory(launch: Launch, folder: Path) -> None:
    """A new engine can start although the daemon's working directory was deleted."""
    place = folder / "checkout"
    place.mkdir()
    daemon = launch([sys.executable, "-m", "daemon", "serve"], cwd=place)
    with daemon.client() as client:
        client.load("embedded")
        place.rmdir()
        os.kill(daemon.engine_pid(), signal.SIGKILL)
        wait_until(lambda: client.stats().engine.restarts == 1, "the engine is started again")
        assert client.load("embedded").outcome == "loaded"
    assert daemon.stop() == 0
