"""A launchd of the test's own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.launchd.agent import KEPT_VARIABLES, KINDS
from daemon.launchd.job import Job
from tests.support.daemons import alive, wait_until
from tests.unit.launchd import fake_launchd
from tests.unit.launchd.mac import Mac

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(name="mac")
def _mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mac]:
    """Return a Mac whose jobs end with the test; this process sees its launchctl and its home as well."""
    folder = Path(tempfile.mkdtemp(prefix="mlxs-", dir="/tmp"))
    for name in ("bin", "home", "launchd"):
        (folder / name).mkdir()
    program = folder / "bin" / "launchctl"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{fake_launchd.__file__}" "$@"\n')
    program.chmod(0o755)
    changed = {
        "HOME": str(folder / "home"),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FAKE_LAUNCHD": str(folder / "launchd"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    foreign = [name for name in os.environ if name.startswith("MLX_SIDECAR_")]
    for name in [*foreign, "XDG_RUNTIME_DIR", "SUDO_USER", *KEPT_VARIABLES]:
        monkeypatch.delenv(name, raising=False)
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    mac = Mac(folder, dict(os.environ))
    mac.settings()
    yield mac
    found = mac.launchctl("print", mac.target)
    pid = Job.parse(found.stdout).pid
    for domain in ("gui", "user"):
        for label in KINDS:
            mac.launchctl("bootout", f"{domain}/{os.getuid()}/{label}")
    wait_until(lambda: pid is None or not alive(pid), "the job has ended")
    keeper = (mac.launchd / "keeper.log").read_text() if (mac.launchd / "keeper.log").exists() else ""
    shutil.rmtree(folder)
    assert not keeper, keeper
