"""Fixtures: doors on the shared daemon, one on a Unix socket and one on a port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.support.daemons import RunningDaemon, wait_until


@dataclass(frozen=True, slots=True)
class Door:
    """
    A running door.

    Attributes:
        address: A path, or "127.0.0.1:PORT".
        token: What requests on a port must carry.
    """

    address: str
    token: str

    @property
    def unix(self) -> str:
        """The path of its Unix socket; empty if it is on a port."""
        return self.address if self.address.startswith("/") else ""

    @property
    def base_url(self) -> str:
        """What an SDK is given."""
        return f"http://{'localhost' if self.unix else self.address}/v1"


class RunningDoor:
    """
    A door that was started by hand, with options of `mlx-sidecar http`.

    Attributes:
        process: Its process.
        door: What clients need.
    """

    def __init__(self, daemon: RunningDaemon, *options: str) -> None:
        command = [sys.executable, "-m", "daemon", "http"]
        with tempfile.TemporaryFile() as log:
            self.process = subprocess.Popen([*command, *options], env=daemon.environ, stderr=log)
            wait_until(lambda: self._ended() or b"served at" in _content(log), "the door serves")
            found = re.search(rb"HTTP is served at (?:http://)?(\S+)\n", _content(log))
            assert found is not None, _content(log).decode()
        shown = subprocess.run([*command, "--print-token"], env=daemon.environ, capture_output=True, text=True)
        self.door = Door(found[1].decode(), shown.stdout.strip())

    def _ended(self) -> bool:
        return self.process.poll() is not None

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        assert self.process.wait(30) == 0


def _content(file: IO[bytes]) -> bytes:
    return os.pread(file.fileno(), 65536, 0)


@pytest.fixture(name="unix_door", scope="session")
def _unix_door(daemon: RunningDaemon) -> Iterator[Door]:
    """Return a door on a Unix socket."""
    running = RunningDoor(daemon.serving())
    yield running.door
    running.close()
    assert not Path(running.door.address).exists()


@pytest.fixture(name="port_door", scope="session")
def _port_door(daemon: RunningDaemon) -> Iterator[Door]:
    """Return a door on a port."""
    running = RunningDoor(daemon.serving(), "--port", "0")
    yield running.door
    running.close()


@pytest.fixture(name="start_door")
def _start_door() -> Iterator[Callable[..., Door]]:
    """Return a function that starts a door of the test's own."""
    started: list[RunningDoor] = []

    def start(daemon: RunningDaemon, *options: str) -> Door:
        started.append(RunningDoor(daemon, *options))
        return started[-1].door

    yield start
    for running in started:
        running.close()
