"""Starts, watches and ends daemons as separate processes, and waits for conditions."""

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

import grpc

from mlx_sidecar import Client
from mlx_sidecar.v1 import sidecar_pb2 as pb
from mlx_sidecar.v1.sidecar_pb2_grpc import SidecarServiceStub

SERVE = [sys.executable, "-m", "daemon", "serve"]
"""The daemon itself."""

END_SECONDS = 60
"""Longest wait for an event that must happen; only a broken daemon reaches it."""


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """
    Return the environment of a daemon, or of a program that calls it.

    Args:
        folder: Folder of all its files. Its path must be short, because a socket's path has at most 103 bytes.
        settings: Configuration keys.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLX_SIDECAR_")}
    variables = {f"MLX_SIDECAR_{name.upper()}": value for name, value in settings.items()}
    return {
        **inherited,
        "HF_HUB_OFFLINE": "1",
        "MLX_SIDECAR_SOCKET": str(folder / "run" / "sidecar.sock"),
        "MLX_SIDECAR_STATE_DIR": str(folder),
        "MLX_SIDECAR_LOG_FILE": str(folder / "daemon.log"),
        **variables,
    }


@dataclass(slots=True)
class RunningDaemon:
    """
    A daemon process that a test started.

    Attributes:
        folder: Its own directory.
        environ: Environment in which programs find it.
        process: The parent process.
    """

    folder: Path
    environ: dict[str, str]
    process: subprocess.Popen[bytes] = field(repr=False)

    @classmethod
    def start(cls, folder: Path, command: list[str] | None = None, **settings: str) -> RunningDaemon:
        """
        Start a daemon.

        Args:
            folder: Its own directory.
            command: A program that runs a daemon, such as `SERVE`. None for a daemon that begins with notes of a load
                of the embedded model: it tests and measures the model no more, which takes most of that load.
            settings: Configuration keys.
        """
        environ = environment(folder, **settings)
        if command is None:
            from tests.support.known_models import note_down  # only now: light programs of tests import this module

            note_down(folder)
        return cls(folder, environ, subprocess.Popen(command or SERVE, env=environ))

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return Path(self.environ["MLX_SIDECAR_SOCKET"])

    def serving(self) -> RunningDaemon:
        """Wait until the daemon listens or has ended, and return it. A stale socket file does not count."""
        wait_until(lambda: listens(self.socket) or self.process.poll() is not None, "the daemon listens")
        return self

    def client(self) -> Client:
        """Wait until the daemon listens, and return a new client."""
        return Client(self.serving().socket, timeout=END_SECONDS)

    def engine_pid(self) -> int:
        """Return the process id of its engine."""
        with self.client() as client:
            return client.stats().engine.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the parent process."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end, and return its exit status."""
        return self.process.wait(END_SECONDS)

    def stop(self) -> int:
        """Send SIGTERM if it still runs, wait for its end, and return its exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def log(self) -> list[dict[str, Any]]:
        """Return its log lines so far."""
        return [json.loads(line) for line in (self.folder / "daemon.log").read_text().splitlines()]


def alive(pid: int) -> bool:
    """Tell whether a process runs. A zombie does not."""
    output = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(output.stdout.strip()) and not output.stdout.strip().startswith("Z")


def listens(path: Path) -> bool:
    """Tell whether a process listens on a socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], bool], what: str, seconds: float = END_SECONDS) -> None:
    """Poll a condition until it holds; fail after so many seconds with `what` in the text."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        pause.wait(0.01)


def run(daemon: RunningDaemon, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command against the daemon."""
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        env=daemon.environ,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def raw(daemon: RunningDaemon, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    """Return the events of a call exactly as they are on the wire."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        return list(SidecarServiceStub(channel).Generate(request, wait_for_ready=True))


def idle(client: Client) -> bool:
    """Tell whether the engine has nothing to do."""
    engine = client.stats().engine
    return engine.decoding == engine.prefilling == engine.queued == 0
