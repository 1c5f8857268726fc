"""Fixtures: doors on the shared daemon, one on a Unix socket and one on a port."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.daemons import RunningDaemon


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


def open_door(daemon: RunningDaemon, *options: str) -> tuple[subprocess.Popen[str], Door]:
    """Start a door by hand, wait until it serves, and return its process and itself."""
    command = [sys.executable, "-m", "daemon", "http"]
    process = subprocess.Popen([*command, *options], env=daemon.environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.fullmatch(r"HTTP is served at (?:http://)?(\S+)\n", line)
    assert found is not None, line + process.stderr.read()
    shown = subprocess.run(
        [*command, "--print-token"], env=daemon.environ, capture_output=True, text=True, check=True
    ).stdout
    return process, Door(found[1], shown.strip())


def close_door(process: subprocess.Popen[str]) -> None:
    """End a door."""
    process.terminate()
    assert process.wait(30) == 0
    assert process.stderr is not None
    process.stderr.close()


@pytest.fixture(name="unix_door", scope="session")
def _unix_door(daemon: RunningDaemon) -> Iterator[Door]:
    """Return a door on a Unix socket."""
    process, door = open_door(daemon.serving())
    yield door
    close_door(process)
    assert not Path(door.address).exists()


@pytest.fixture(name="port_door", scope="session")
def _port_door(daemon: RunningDaemon) -> Iterator[Door]:
    """Return a door on a port."""
    process, door = open_door(daemon.serving(), "--port", "0")
    yield door
    close_door(process)


@pytest.fixture(name="start_door")
def _start_door() -> Iterator[Callable[..., Door]]:
    """Return a function that starts a door of the test's own."""
    started: list[subprocess.Popen[str]] = []

    def start(daemon: RunningDaemon, *options: str) -> Door:
        process, door = open_door(daemon.serving(), *options)
        started.append(process)
        return door

    yield start
    for process in started:
        close_door(process)
