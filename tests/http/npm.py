"""The environment with npm's SDKs: made once from the lock file, beside the environment that runs the tests."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent / "node"
FILES = ("package.json", "package-lock.json")
INSTALL_SECONDS = 300
NO_REGISTRY = ("ENOTFOUND", "ECONNREFUSED", "EAI_AGAIN", "ETIMEDOUT")
"""What npm says where no registry can be reached."""


def folder() -> Path:
    """
    Return the folder with the SDKs, which is made at the first call. A change of the lock file makes another.

    A test that needs it is skipped where there is no Node, or where packages cannot be fetched.
    """
    if "CI" not in os.environ and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node or npm is not installed")
    digest = hashlib.sha256((HERE / FILES[1]).read_bytes()).hexdigest()[:12]
    made = Path(sys.prefix) / f"npm-{digest}"
    with open(made.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes the first one makes it
        if not (made / "complete").exists():
            _make(made)
            (made / "complete").touch()
    return made


def _make(made: Path) -> None:
    made.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copy(HERE / name, made)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=made, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode and any(word in done.stderr for word in NO_REGISTRY):
        pytest.skip("the SDKs cannot be fetched: no package registry is reachable")
    assert done.returncode == 0, done.stderr


def results(*arguments: str) -> dict[str, Any]:
    """Run the program of the folder `node` with the SDKs, and return the JSON object that it prints."""
    made = folder()
    shutil.copy(HERE / "program.mjs", made)
    done = subprocess.run(["node", "program.mjs", *arguments], cwd=made, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert isinstance(seen, dict)
    return seen
