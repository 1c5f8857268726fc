"""The real agents: installed once from npm in pinned versions, beside the environment that runs the tests."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PINS = Path(__file__).with_name("package.json")
INSTALL_SECONDS = 900
NO_REGISTRY = ("ENOTFOUND", "EAI_AGAIN", "ETIMEDOUT", "ECONNREFUSED", "ENETUNREACH", "E404", "ETARGET")
"""What npm says where no registry can be reached, or where it lacks a version."""
SCRIPTS = (
    "@anthropic-ai/claude-code/install.cjs",
    "node/installArchSpecificPackage.js",
    "opencode-ai/postinstall.mjs",
)
"""Scripts that put a package's program in its place; npm runs none that it was not told to."""


def programs() -> Path:
    """
    Return the folder with the agents' programs, which is made at the first call. A change of the pins makes another.

    A test that needs it is skipped where there is no npm, or where packages cannot be fetched.
    """
    if shutil.which("npm") is None:
        pytest.skip("the agents cannot be installed: there is no npm")
    folder = Path(sys.prefix) / f"agents-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _install(folder)
            (folder / "complete").touch()
    return folder / "node_modules" / ".bin"


def _install(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(PINS, folder)
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode and any(word in done.stderr for word in NO_REGISTRY):
        pytest.skip("the agents cannot be fetched: no package registry is reachable")
    assert done.returncode == 0, done.stderr
    for script in SCRIPTS:
        path = folder / "node_modules" / script
        subprocess.run(["node", str(path)], cwd=path.parent, check=True, timeout=INSTALL_SECONDS)
    (folder / "node_modules" / ".bin" / "node").symlink_to("../node/bin/node")  # npm linked it only if it was there
