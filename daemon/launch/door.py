"""
The door of a launch: a process that serves one tool on a free port, with a token of its own, and ends with the tool.

    launch                        the door                          the tool
      | listens on a port
      | starts -------------------> takes the port, gets the token
      | waits <-------------------- "ready"
      | becomes the tool -----------------------------------------> the same process
                                  sees every half second whether
                                  the tool is its parent still <--- ends, however it does
                                  removes the files, and ends

The launch becomes the tool, so that exit status, signals and the terminal are the tool's own. The door is in a session
of its own: Ctrl-C does not reach it.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

from daemon.server.http_listener import Listener, listen_on
from daemon.shared.config import Config

LOG_NAME = "launch.log"
"""File in the state directory with what doors of launches log."""
MOST_LOG_BYTES = 1 << 20
"""A longer log is begun anew by the next launch."""
READY = b"ready\n"


class LaunchError(Exception):
    """A tool cannot be launched. The text is one sentence: why, and what to do."""


class Door:
    """
    A door that is about to be started.

    Args:
        config: The daemon's configuration, for the socket and the log level.
        folder: The folder of the launch, which the door removes at its end.

    Attributes:
        token: What each request must carry.

    Raises:
        OSError: If no port is free.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.token = secrets.token_urlsafe(32)
        self._config = config
        self._folder = folder
        self._listener: Listener = listen_on(0)

    @property
    def url(self) -> str:
        """Where it serves, without a path."""
        return f"http://{self._listener.address}"

    def start(self) -> None:
        """
        Start it, and wait until it serves. It ends with this process, or with what this process becomes.

        Raises:
            LaunchError: If it does not serve.
        """
        log = self._config.state_dir / LOG_NAME
        try:
            descriptor = _open_log(log)
        except OSError as error:
            text = f"The log of the tool's HTTP door, {log}, cannot be opened ({error.strerror})"
            raise LaunchError(f"{text}; make it writable, or set another state_dir.") from None
        with open(descriptor, "ab") as output, self._listener.socket:
            process = self._spawn(output.fileno())
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as told, process.stdout as said:
            told.write(f"{self.token}\n".encode())
            told.flush()
            if said.readline() != READY:
                raise LaunchError(f"The HTTP door of the tool did not start; {log} says why.")

    def _spawn(self, log: int) -> subprocess.Popen[bytes]:
        fd = self._listener.socket.fileno()
        command = [sys.executable, "-P", "-m", "daemon.http", "--fd", str(fd), "--config", self._config.to_json()]
        return subprocess.Popen(  # noqa: S603 - our own program
            [*command, "--tool", str(os.getpid()), "--folder", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=(fd,),
            start_new_session=True,
            cwd="/",
        )


def _open_log(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if os.fstat(descriptor).st_size > MOST_LOG_BYTES:
        os.ftruncate(descriptor, 0)
    return descriptor
