"""The doctor on a Mac with a service, and anywhere with and without a daemon."""

from __future__ import annotations

import json
import plistlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.cli.serving import look
from daemon.doctor.finding import Finding, Verdict
from daemon.doctor.launchd import _state
from daemon.doctor.launchd import service as examine
from daemon.launchd.job import Job
from daemon.launchd.launchctl import Launchctl
from daemon.launchd.readiness import Status
from daemon.launchd.service import Service
from mlx_sidecar import HistorySample
from tests.support.daemons import RunningDaemon, environment, wait_until
from tests.unit.launchd.agents import agent_of
from tests.unit.launchd.mac import Mac

NOTHING = HistorySample(0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""What the history says of a time at which nothing was asked."""


def findings(mac: Mac) -> dict[str, Finding]:
    """Return what the doctor finds of the service, by check."""
    return {one.check: one for one in examine(Service(Launchctl(), mac.home, look), mac.home)}


def doctor(environ: dict[str, str]) -> tuple[int, dict[str, dict[str, str]]]:
    """Run the command; return its exit status and its findings."""
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "doctor", "--json"], env=environ, capture_output=True, text=True, timeout=300
    )
    answer = json.loads(done.stdout)
    assert answer["ok"] == (done.returncode == 0), done.stderr
    return done.returncode, {one["check"]: one for one in answer["findings"]}


def test_doctor_examines_a_service_over_its_whole_life(mac: Mac) -> None:
    """Each state has its finding, and each fault its remedy."""
    assert findings(mac)["service"].verdict is Verdict.SKIPPED
    service = Service(Launchctl(), mac.home, look)
    service.install(agent_of(mac))
    found = findings(mac)
    assert {one.verdict for one in found.values()} == {Verdict.OK}
    assert found["exit timeout"].found == "60 s, and a drain takes up to 30 s"
    assert found["service log"].found == str(mac.logs / "daemon.log")

    tree = plistlib.loads(mac.plist.read_bytes())
    tree["EnvironmentVariables"]["MLX_SIDECAR_DRAIN_TIMEOUT"] = "55"
    mac.plist.write_bytes(plistlib.dumps(tree))
    assert findings(mac)["exit timeout"].fix.startswith("set drain_timeout to at most 50")
    tree["EnvironmentVariables"]["MLX_SIDECAR_DRAIN_TIMEOUT"] = "soon"
    mac.plist.write_bytes(plistlib.dumps(tree))
    assert "MLX_SIDECAR_DRAIN_TIMEOUT is 'soon'" in findings(mac)["exit timeout"].found

    tree["ProgramArguments"][0] = "/gone/python"
    mac.plist.write_bytes(plistlib.dumps(tree))
    assert findings(mac)["service program"].found == "/gone/python is gone"
    service.stop()
    assert findings(mac)["service"].verdict is Verdict.WARNING
    mac.plist.write_text("not a plist")
    assert findings(mac)["service"].verdict is Verdict.FAILED


def test_doctor_fails_a_service_that_does_not_serve(mac: Mac) -> None:
    """The doctor fails a service that does not serve, although launchd reports it as running."""
    Service(Launchctl(), mac.home, look).install(agent_of(mac))
    mac.socket.unlink()
    assert findings(mac)["service"].verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("pid", "ended", "fix"),
    [
        (4711, None, "see: mlx-sidecar service logs"),
        (None, "2", "see: mlx-sidecar service logs --stderr"),
        (None, "0", "run: mlx-sidecar service start"),
    ],
)
def test_doctor_names_the_way_back_of_a_service(tmp_path: Path, pid: int | None, ended: str | None, fix: str) -> None:
    """What refuses to start says why before it has a log; what was told to end waits for a start."""
    job = Job("not running", pid, 3, ended, 60, None)
    paths = {"socket": tmp_path / "s.sock", "log": tmp_path / "daemon.log", "stderr": tmp_path / "launchd.log"}
    status = Status(tmp_path / "a.plist", "gui/501", job, address="", serving=None, homebrew=False, **paths)
    assert _state(status).fix == fix


def test_doctor_of_a_healthy_machine_is_silent(daemon: RunningDaemon) -> None:
    """On a healthy machine there is no warning, and the exit status is 0."""
    with daemon.client() as client:
        wait_until(lambda: client.stats().engine.state == "ready", "the engine is ready")
    status, found = doctor(daemon.environ)
    assert status == 0
    found.pop("BLAS", None)  # of the machine that tests, which may have the slow one of MLX's wheel
    assert {one["verdict"] for one in found.values()} <= {"ok", "skipped"}, found
    assert not [one for one in found.values() if one["fix"]]
    assert found["running daemon"]["verdict"] == found["engine"]["verdict"] == found["device"]["verdict"] == "ok"
    assert found["warm equals cold"]["found"].startswith("99 of 100 tokens reused, the same tokens")
    assert found["end"]["found"] == "the daemon drained and ended with status 0"


def test_doctor_leaves_no_trace_in_the_daemon(start_daemon: Callable[..., RunningDaemon]) -> None:
    """The running daemon has no new model, prefix, count or sample after a check."""
    daemon = start_daemon(max_models="1")
    with daemon.client() as client:
        wait_until(lambda: client.stats().model_cache.max_models == 1, "the engine has told its figures")
        before = client.stats(history=True)
        status, found = doctor(daemon.environ)
        after = client.stats(history=True)
    assert (status, found["warm equals cold"]["verdict"]) == (0, "ok")
    assert after.models == before.models == ()
    for part in ("model_cache", "prefix_cache", "latency"):
        assert getattr(after, part) == getattr(before, part), part
    assert (after.engine.pid, after.engine.prompt_tokens) == (before.engine.pid, 0)
    assert {replace(sample, age=0.0) for sample in after.history} <= {replace(NOTHING, age=0.0)}


def test_doctor_without_daemon_starts_and_ends_its_own(folder: Path) -> None:
    """The doctor's own daemon leaves no file behind, and a failed check makes the exit status 1."""
    environ = environment(folder)
    (folder / "run").mkdir(0o755)
    status, found = doctor(environ)
    assert (status, found["socket"]["verdict"]) == (1, "failed")
    assert "take a directory that the daemon creates" in found["socket"]["fix"]
    assert found["end"]["found"] == "the daemon drained and ended with status 0"
    assert found["warm equals cold"]["verdict"] == "ok"
    assert not any((folder / "run").iterdir())
