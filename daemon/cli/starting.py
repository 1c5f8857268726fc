"""
Starts a daemon for a command that needs it: the installed service of a Mac, or a background process.

Two commands may start a daemon at the same time: the daemon's lock lets only one process serve, and both commands use
it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli.output.formatting import stderr_is_terminal, stdin_is_terminal
from daemon.cli.serving import listens, look
from daemon.server.singleton import holder
from daemon.shared.process_setup import settle_places

if TYPE_CHECKING:
    from daemon.cli.session import Session
    from daemon.launchd.service import Service
    from daemon.shared.config import Config

LOG_NAME, STDERR_NAME = "daemon.log", "daemon.stderr"
"""Files in the state directory: the log if none is configured, and output from before the daemon has a log."""

QUESTION = "No daemon is running. Start one?"
WAIT_SECONDS = 60.0
"""Longest wait until a daemon serves."""
_APPEAR_SECONDS = 2.0
"""Wait for a socket before the question, as long as the client's own wait for a daemon that is starting."""
_STARTING_SECONDS = 10.0
"""The same wait if a process holds the daemon's lock: it is starting or ending."""
_LOSER_SECONDS = 0.5
"""Time after the end of a daemon that lost a race in which the winner writes its process id."""
_POLL_SECONDS = 0.05


class StartError(Exception):
    """A daemon was started and does not serve. The text quotes its last output."""


def ensure(session: Session, path: Path, ask: bool) -> None:
    """
    Start a daemon for a socket without a listener, after `--start` or a confirmation on the terminal.

    Without either nothing happens, and the call that follows fails because no daemon runs. Scripts are never asked:
    the question needs a terminal on standard input and standard error, and no `--json`.

    Raises:
        ConfigError: If the configuration is wrong, so that a daemon would refuse to start.
        StartError, ServiceError: If the daemon does not serve in time.
    """
    may_ask = ask and not session.as_json and stdin_is_terminal() and stderr_is_terminal()
    if session.start:
        wanted = not listens(path)
    else:
        wanted = may_ask and not _appears(path) and click.confirm(QUESTION, default=True, err=True)
    if wanted:
        start(session.config(), path, _service())


def _appears(path: Path) -> bool:
    """Wait for a daemon that is just starting, and tell whether a daemon listens."""
    begin = time.monotonic()
    while not (is_up := listens(path)):
        if time.monotonic() - begin >= (_APPEAR_SECONDS if holder(path) is None else _STARTING_SECONDS):
            break
        time.sleep(_POLL_SECONDS)
    return is_up


def start(config: Config, path: Path, service: Service | None) -> None:
    """
    Start a daemon, wait until it serves, and report it on standard error.

    Args:
        config: Its configuration, except for the socket.
        path: The socket.
        service: The service of this user; None if the system has none. It is used if it is installed for this socket.

    Raises:
        StartError: If a background process does not serve in time.
        ServiceError: If the service does not serve in time.
    """
    if service is not None:
        status = service.status()
        if status.plist is not None and status.socket == path:
            service.start()
            click.echo("Started the service; mlx-sidecar service stop ends it.", err=True)
            return
    _start_process(config, path)


def _service() -> Service | None:
    if sys.platform != "darwin":
        return None
    from daemon.launchd.launchctl import Launchctl
    from daemon.launchd.service import Service

    return Service(Launchctl(), Path.home(), look, WAIT_SECONDS)


def _start_process(config: Config, path: Path) -> None:
    from daemon.launchd.logs import LogTail

    folder, log = config.state_dir, config.log_file
    command = [sys.executable, "-P", "-m", "daemon", "serve", "--socket", str(path)]
    if log is None:
        log = folder / LOG_NAME
        command += ["--log-file", str(log)]
    stderr = folder / STDERR_NAME
    tail = LogTail(stderr)
    process = _detached(command, stderr)
    if not _comes_to_serve(process, path):
        output = tail.read()
        raise StartError(
            f"the daemon was started and does not serve{f' ({output})' if output else ''}; see {stderr} and {log}"
        )
    ours = process.poll() is None  # else it lost a race, and another daemon serves
    click.echo(
        f"Started the daemon (pid {process.pid}); it runs until it gets SIGTERM, and logs to {log}."
        if ours
        else "Another command has just started the daemon.",
        err=True,
    )


def _detached(command: list[str], stderr: Path) -> subprocess.Popen[bytes]:
    """Start a process in its own session, so that neither Ctrl-C nor the end of this terminal reaches it."""
    settle_places()
    try:
        stderr.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(f"the daemon cannot be started: {stderr} cannot be written ({error.strerror})") from None
    try:
        return subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, start_new_session=True, cwd="/"
        )
    finally:
        os.close(fd)


def _comes_to_serve(process: subprocess.Popen[bytes], path: Path) -> bool:
    """Wait until a process listens on the socket: the started process, or the winner of a race against it."""
    deadline = time.monotonic() + WAIT_SECONDS
    give_up_at = None
    while not listens(path):
        now = time.monotonic()
        if process.poll() is not None:
            give_up_at = give_up_at or now + _LOSER_SECONDS
            if now >= give_up_at and holder(path) is None:
                return False
        if now >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
