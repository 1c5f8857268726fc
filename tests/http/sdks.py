"""The environment with the real SDKs: made once from pinned versions, beside the environment that runs the tests."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
PINS = HERE / "constraints.txt"
FRAMEWORKS = HERE / "frameworks.txt"
FRAMEWORKS_OPENAI2 = HERE / "frameworks_openai2.txt"
INSTALL_SECONDS = 600
NO_REGISTRY = ("No matching distribution", "Connection", "Temporary failure", "timed out", "Could not find a version")
"""What pip says where no registry can be reached."""


def python(pins: Path = PINS) -> Path:
    """
    Return the interpreter of an environment, which is made at the first call. A change of the pins makes another.

    A test that needs it is skipped where packages cannot be fetched.
    """
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = Path(sys.prefix) / f"sdks-{digest}"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes the first one makes it
        if not (folder / "complete").exists():
            _make(folder, pins)
            (folder / "complete").touch()
    return folder / "bin" / "python"


def _make(folder: Path, pins: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*install, "-r", str(pins)], capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode and any(word in done.stderr for word in NO_REGISTRY):
        pytest.skip("the SDKs cannot be fetched: no package registry is reachable")
    assert done.returncode == 0, done.stderr


def results(program: str, *arguments: str, pins: Path = PINS, seconds: float = 120) -> dict[str, Any]:
    """Run a program of this folder with what is pinned, and return the JSON object that it prints."""
    command = [str(python(pins)), "-W", "error::ResourceWarning", str(HERE / program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert isinstance(seen, dict)
    return seen
