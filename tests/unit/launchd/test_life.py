"""The whole life of the service under a launchd that really runs it, with the real daemon, as a person types it."""

from __future__ import annotations

import os
import plistlib
import signal
from typing import cast

from daemon import __version__
from daemon.shared.process_setup import OUTPUT_BYTES
from mlx_sidecar import Client
from tests.support.daemons import alive, listens, wait_until
from tests.unit.launchd.mac import Mac


def test_service_life_from_install_to_uninstall(mac: Mac) -> None:
    """Installed, restarted, stopped, started, uninstalled: each says what is so, and it is so."""
    assert "not installed" in mac.service("start", status=1)
    assert mac.state(status=3)["ready"] is False

    said = mac.service("install", "--max-models", "2")
    first = mac.job()
    assert said == f"Installed: version {__version__} serves on {mac.socket} (pid {first.pid}).\n"
    state = mac.state()
    assert (state["ready"], state["job"]["pid"], state["job"]["exit_timeout"]) == (True, first.pid, 60)
    assert state["plist"] == str(mac.plist)
    assert mac.plist.stat().st_mode & 0o777 == 0o600, "proxies in it may have passwords"
    assert (mac.logs / "daemon.log").stat().st_mode & 0o777 == 0o600
    with Client(mac.socket) as client:
        wait_until(lambda: client.stats().model_cache.max_models == 2, "the flag shows in the figures")

    assert mac.service("restart").startswith("Restarted: ")
    second = mac.job()
    assert second.pid != first.pid
    assert not alive(cast("int", first.pid))
    assert '"event": "serving"' in mac.service("logs")
    assert second.last_exit == "0", "the first was drained, not killed"

    assert mac.service("stop") == "Stopped.\n"
    assert not alive(cast("int", second.pid))
    assert not mac.socket.exists()
    assert mac.state(status=3)["plist"] == str(mac.plist), "it starts again at the next login"

    assert mac.service("start").startswith("Started: ")
    third = mac.job().pid

    assert mac.service("uninstall") == "Uninstalled.\n"
    assert not alive(cast("int", third))
    assert not mac.plist.exists()
    assert (mac.logs / "daemon.log").exists(), "logs stay"


def test_crashed_service_restarts_and_crash_loop_ends(mac: Mac) -> None:
    """KeepAlive means: again after a crash, as often as it takes, but not after a SIGTERM of the user."""
    mac.service("install")
    pid = cast("int", mac.job().pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: mac.job().pid not in (None, pid), "launchd starts it again")
    assert mac.job().last_exit == "Killed: 9"
    wait_until(lambda: listens(mac.socket), "it listens again")  # a client waits for that for two seconds
    with Client(mac.socket, timeout=60) as client:
        wait_until(lambda: client.stats().engine.state == "ready", "it serves again")

    os.kill(cast("int", mac.job().pid), signal.SIGTERM)
    wait_until(lambda: mac.job().pid is None, "it ends")
    ended = mac.job()
    assert (ended.state, ended.last_exit) == ("not running", "0")

    # A crash loop: told at once in the daemon's own words; no need to install anew once its cause is gone.
    config = mac.home / ".mlx-sidecar" / "config.toml"
    config.write_text("max_batch = 0\n")
    said = mac.service("start", status=1)
    assert "ended as soon as it was started (last exit: 2)" in said
    assert f"max_batch from {config} is 0, but must be" in said
    before = mac.job().runs
    wait_until(lambda: mac.job().runs >= before + 2, "launchd tries again and again")
    output = mac.logs / "launchd.log"
    output.write_bytes(bytes(OUTPUT_BYTES + 1))
    wait_until(lambda: 0 < output.stat().st_size < OUTPUT_BYTES, "the next try empties what it adds to")
    assert "max_batch" in mac.service("logs", "--stderr")
    shown = mac.service("status", status=3)
    assert "last exit     2" in shown

    config.unlink()
    wait_until(lambda: mac.run("service", "status").returncode == 0, "the next try succeeds")


def test_service_upgrade_replaces_version_and_settings(mac: Mac) -> None:
    """Another interpreter and other settings in the plist: the old one drains, the new one serves, once."""
    socket = mac.folder / "run" / "s.sock"
    mac.service("install", "--model-ttl", "10m", MLX_SIDECAR_SOCKET=str(socket), HF_TOKEN="hf_1")
    old = cast("int", mac.job().pid)
    state = mac.state()
    assert (state["socket"], state["ready"]) == (str(socket), True), "the service's own socket, not this shell's"
    tree = plistlib.loads(mac.plist.read_bytes())
    assert tree["EnvironmentVariables"] == {
        "HF_HUB_OFFLINE": "1",
        "MLX_SIDECAR_LOG_FILE": str(mac.logs / "daemon.log"),
        "MLX_SIDECAR_MODEL_TTL": "600.0",
        "MLX_SIDECAR_SOCKET": str(socket),
    }
    elsewhere = mac.folder / "elsewhere"
    elsewhere.symlink_to(tree["ProgramArguments"][0])
    tree["ProgramArguments"][0] = str(elsewhere)
    mac.plist.write_bytes(plistlib.dumps(tree))

    said = mac.service("install", "--max-queue", "7")
    new = mac.job()
    assert said.startswith("Installed: ")
    assert "No longer set, as they were in the service before: MLX_SIDECAR_MODEL_TTL, MLX_SIDECAR_SOCKET; " in said
    assert not alive(old)
    assert new.runs == 1
    with Client(mac.socket) as client:
        assert client.stats().daemon.pid == new.pid
    tree = plistlib.loads(mac.plist.read_bytes())
    assert tree["EnvironmentVariables"]["MLX_SIDECAR_MAX_QUEUE"] == "7"
    assert str(elsewhere) not in mac.launchctl("print", mac.target).stdout
