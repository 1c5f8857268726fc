"""`mlx-sidecar service --join`: the process that makes a Mac a rank of a group, under a launchd that really runs it."""

from __future__ import annotations

import os
import plistlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon import __version__
from daemon.launchd.agent import JOIN, plist_path
from daemon.shared import presence
from tests.support.daemons import END_SECONDS, alive, wait_until
from tests.support.groups import write_key
from tests.unit.launchd.mac import Mac

LISTEN = "127.0.0.1:0"
"""The system chooses a port that is free."""


@pytest.fixture(name="joining")
def _joining(mac: Mac) -> Mac:
    """Return a Mac whose configuration is that of a rank."""
    folder = mac.home / ".mlx-sidecar"
    folder.mkdir()
    key = write_key(folder / "group.key")
    (folder / "config.toml").write_text(f'[group]\nlisten = "{LISTEN}"\nkey_file = "{key}"\n')
    return mac


def present(mac: Mac) -> presence.Present:
    """Return the process that listens, which there must be."""
    found = presence.find(mac.home / ".mlx-sidecar" / presence.NAME)
    assert found is not None
    return found


def test_join_service_life_from_install_to_uninstall(joining: Mac) -> None:
    """Each command says what is so of `join`, and the daemon's own service stays out of it."""
    assert "run: mlx-sidecar service install --join" in joining.service("start", "--join", status=1)
    said = joining.service("install", "--join")
    first = present(joining)
    assert said == f"Installed: version {__version__} listens on {LISTEN} (pid {first.pid}).\n"
    assert joining.service("install", "--join").startswith("Installed already: ")
    tree = plistlib.loads(plist_path(joining.home, JOIN).read_bytes())
    assert tree["ProgramArguments"][-1] == "join"
    assert not joining.plist.exists()
    shown = joining.service("status", "--join")
    assert f"{JOIN.label}, running" in shown
    assert f"listening     version {__version__}, pid {first.pid}" in shown
    assert "not installed" in joining.service("start", status=1), "the daemon's"

    assert joining.service("restart", "--join").startswith("Restarted: ")
    second = present(joining)
    assert (second.pid != first.pid, alive(first.pid)) == (True, False)
    assert '"event": "group_listening"' in joining.service("logs", "--join")
    assert joining.service("stop", "--join") == "Stopped.\n"
    assert not alive(second.pid)
    assert joining.service("start", "--join").startswith("Started: ")
    third = present(joining).pid
    assert joining.service("uninstall", "--join") == "Uninstalled.\n"
    assert not alive(third)
    assert not plist_path(joining.home, JOIN).exists()


def test_install_needs_the_configuration_of_a_rank(mac: Mac) -> None:
    """By the key that is missing, before launchd hears of anything."""
    assert "group_listen is not set" in mac.service("install", "--join", status=2)
    said = mac.service("install", "--join", "--group-listen", LISTEN, status=2)
    assert "group_key_file is not set; make a key with: mlx-sidecar group key" in said
    assert not mac.calls()


def test_join_service_is_refused_beside_another_process(joining: Mac) -> None:
    """And such a process refuses to start beside the service."""
    command = [sys.executable, "-m", "daemon", "join"]
    with subprocess.Popen(command, env=joining.environ) as other:
        wait_until(lambda: presence.find(joining.home / ".mlx-sidecar" / presence.NAME) is not None, "it listens")
        said = joining.service("install", "--join", status=1)
        assert f"another mlx-sidecar join (pid {other.pid}) listens; end it first" in said
        assert f"another mlx-sidecar join (pid {other.pid}) has the address" in joining.service(
            "status", "--join", status=3
        )
        other.terminate()
        assert other.wait(END_SECONDS) == 0
    joining.service("install", "--join")
    refused = joining.run("join")
    assert refused.returncode == 2
    assert "Another mlx-sidecar join holds" in refused.stderr


def test_join_service_restarts_after_a_crash(joining: Mac) -> None:
    """launchd starts it again; what a killed process has left is no rank."""
    joining.service("install", "--join")
    pid = present(joining).pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: joining.run("service", "status", "--join").returncode == 0, "launchd has started it again")
    assert present(joining).pid != pid


def test_file_of_a_process_that_is_gone_is_no_rank(tmp_path: Path) -> None:
    """Only a lock tells that a process lives: its number may belong to another one by now."""
    file = tmp_path / presence.NAME
    own = presence.Present(os.getpid(), "1", "10.0.0.2:7411")
    assert presence.find(file) is None
    with presence.held(file) as held:
        assert presence.find(file) is None, "it does not listen yet"
        held.listens(own)
        assert presence.find(file) == own
        with pytest.raises(presence.AlreadyPresent), presence.held(file):
            pass
    assert presence.find(file) is None
    assert file.stat().st_mode & 0o777 == 0o600
