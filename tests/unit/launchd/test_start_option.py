"""`--start` where the service is installed: the service is started, and no process beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.cli import starting
from daemon.cli.serving import listens, look
from daemon.launchd.launchctl import Launchctl
from daemon.launchd.service import Service
from daemon.shared.config import Config
from tests.unit.launchd.mac import Mac


@pytest.fixture(name="service")
def _service(mac: Mac) -> Service:
    """Return the service of the test's Mac, which is not installed yet."""
    return Service(Launchctl(), mac.home, look)


def spawned(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the sockets for which a process of its own would have been started from now on."""
    sockets: list[Path] = []
    monkeypatch.setattr(starting, "_start_process", lambda config, path: sockets.append(path))
    return sockets


def test_start_flag_starts_the_installed_service(
    mac: Mac, service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service serves when the command continues, and launchd knows its process."""
    mac.service("install")
    mac.service("stop")
    processes = spawned(monkeypatch)

    starting.start(Config(), mac.socket, service)

    assert processes == []
    assert listens(mac.socket)
    assert mac.state()["ready"] is True
    assert capsys.readouterr().err == "Started the service; mlx-sidecar service stop ends it.\n"


def test_start_flag_without_service_starts_a_process(
    mac: Mac, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed service would not serve on another socket, so a process is started."""
    processes = spawned(monkeypatch)
    starting.start(Config(), mac.socket, service)
    mac.service("install")
    other = mac.folder / "other.sock"
    starting.start(Config(), other, service)

    assert processes == [mac.socket, other]
