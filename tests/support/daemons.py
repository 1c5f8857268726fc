"""A daemon in a process of its own, as tests start, watch and end it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_sidecar import Client

END_SECONDS = 60
"""Longest wait for an end that must come; only a broken daemon takes it."""


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a daemon, or of a program that calls it, with all state below a short folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLX_SIDECAR_")}
    given = {f"MLX_SIDECAR_{name.upper()}": value for name, value in settings.items()}
    return {
        **clean,
        "HF_HUB_OFFLINE": "1",
        "MLX_SIDECAR_SOCKET": str(folder / "run" / "sidecar.sock"),
        "MLX_SIDECAR_STATE_DIR": str(folder),
        "MLX_SIDECAR_LOG_FILE": str(folder / "daemon.log"),
        **given,
    }


@dataclass(slots=True)
class RunningDaemon:
    """
    A daemon that was started by a test.

    Attributes:
        folder: Its own directory.
        environ: Environment in which programs find it.
    """

    folder: Path
    environ: dict[str, str]
    process: subprocess.Popen[bytes] = field(repr=False)

    @classmethod
    def start(cls, folder: Path, command: list[str] | None = None, **settings: str) -> RunningDaemon:
        """Start one; `settings` are configuration keys."""
        environ = environment(folder, **settings)
        command = command or [sys.executable, "-m", "daemon", "serve"]
        return cls(folder, environ, subprocess.Popen(command, env=environ))

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return Path(self.environ["MLX_SIDECAR_SOCKET"])

    def serving(self) -> RunningDaemon:
        """Return this daemon as soon as it listens, or has ended; a stale socket is not one that it listens on."""
        wait_until(lambda: listens(self.socket) or self.process.poll() is not None, "the daemon listens")
        return self

    def client(self) -> Client:
        """Return a new client, as soon as the daemon listens."""
        return Client(self.serving().socket, timeout=END_SECONDS)

    def engine_pid(self) -> int:
        """Return the process id of its engine."""
        with self.client() as client:
            return client.stats().engine.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the parent process."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return its exit status once it has ended."""
        return self.process.wait(END_SECONDS)

    def stop(self) -> int:
        """End it, unless it has ended, and return its exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def log(self) -> list[dict[str, Any]]:
        """Return its log lines so far."""
        return [json.loads(line) for line in (self.folder / "daemon.log").read_text().splitlines()]


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended but was not waited for does not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(shown.stdout.strip()) and not shown.stdout.strip().startswith("Z")


def listens(path: Path) -> bool:
    """Tell whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(str(path))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Ask again and again until it is so; fail after a time that only a broken daemon takes."""
    deadline = time.monotonic() + END_SECONDS
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        pause.wait(0.01)
