"""
Starting a daemon for a command that needs one: the installed service of a Mac, or a process in the background.

Two that start at the same time do no harm: the daemon's lock lets one of them serve, and both commands use that one.
"""

from __future__ import annotations

import os
import socket as sockets
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.cli.output.formatting import stderr_is_terminal, stdin_is_terminal
from daemon.server.singleton import holder

if TYPE_CHECKING:
    from daemon.cli.session import Session
    from daemon.launchd.service import Service
    from daemon.shared.config import Config

LOG_NAME, STDERR_NAME = "daemon.log", "daemon.stderr"
"""Files below the state directory: the log, unless one is configured, and what is printed before there is a log."""

QUESTION = "No daemon is running. Start one?"
WAIT_SECONDS = 60.0
"""Longest wait for a daemon to serve."""
_APPEAR_SECONDS = 2.0
"""A daemon may take so long to come up before a person is asked, as long as the client waits for it."""
_STARTING_SECONDS = 10.0
"""One that has its lock already, or still, may take so long."""
_LOSER_SECONDS = 0.5
"""After the end of a daemon that lost a race, the winner has written its process id."""
_POLL_SECONDS = 0.05
_CONNECT_SECONDS = 1.0


class StartError(Exception):
    """The daemon was to be started and does not serve; the text is a sentence with its own last words."""


def ensure(session: Session, path: Path, ask: bool) -> None:
    """
    Start a daemon for a socket where none listens, if `--start` says so or a person at a terminal agrees.

    Otherwise nothing happens, and the call that follows says that no daemon runs. A program is never asked: neither
    without a terminal on standard input and standard error, nor with `--json`.

    Raises:
        ConfigError: If the configuration is wrong, so that a daemon would refuse to start.
        StartError, ServiceError: If it does not come to serve.
    """
    may_ask = ask and not session.as_json and stdin_is_terminal() and stderr_is_terminal()
    if session.start:
        wanted = not listens(path)
    else:
        wanted = may_ask and not _appears(path) and click.confirm(QUESTION, default=True, err=True)
    if wanted:
        start(session.config(), path, _service())


def _appears(path: Path) -> bool:
    """Wait for a daemon that is just starting, and tell whether one listens."""
    begin = time.monotonic()
    while not (found := listens(path)):
        if time.monotonic() - begin >= (_APPEAR_SECONDS if holder(path) is None else _STARTING_SECONDS):
            break
        time.sleep(_POLL_SECONDS)
    return found


def listens(path: Path) -> bool:
    """Tell whether a process listens on a socket; a daemon that is busy or stopped does."""
    with sockets.socket(sockets.AF_UNIX) as one:
        one.settimeout(_CONNECT_SECONDS)
        try:
            one.connect(str(path))
        except (BlockingIOError, TimeoutError):  # its queue is full
            return True
        except OSError:
            return False
    return True


def start(config: Config, path: Path, service: Service | None) -> None:
    """
    Start a daemon, wait until it serves, and say on standard error which one it is.

    Args:
        config: The configuration that it will have, but for the socket.
        path: The socket.
        service: The service of this user; None if the system has none. It is started if it is installed and serves
            this socket.

    Raises:
        StartError: If a process of our own does not come to serve.
        ServiceError: If the service does not.
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
    from daemon.cli.commands.service import look
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
    words = folder / STDERR_NAME
    tail = LogTail(words)
    process = _detached(command, words)
    if not _comes_to_serve(process, path):
        said = tail.read()
        raise StartError(
            f"the daemon was started and does not serve{f' ({said})' if said else ''}; see {words} and {log}"
        )
    ours = process.poll() is None
    click.echo(
        f"Started the daemon (pid {process.pid}); it runs until it gets SIGTERM, and logs to {log}."
        if ours
        else "Another command has just started the daemon.",
        err=True,
    )


def _detached(command: list[str], words: Path) -> subprocess.Popen[bytes]:
    """Start a process with a session of its own: neither Ctrl-C here nor the end of this terminal reaches it."""
    try:
        words.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(f"the daemon cannot be started: {words} cannot be written ({error.strerror})") from None
    try:
        return subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, start_new_session=True, cwd="/"
        )
    finally:
        os.close(fd)


def _comes_to_serve(process: subprocess.Popen[bytes], path: Path) -> bool:
    """Wait until a process listens on the socket: the one that was started, or the one that it lost a race against."""
    deadline = time.monotonic() + WAIT_SECONDS
    lost = None
    while not listens(path):
        now = time.monotonic()
        if process.poll() is not None:
            lost = lost or now + _LOSER_SECONDS
            if now >= lost and holder(path) is None:
                return False
        if now >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
