"""The programs of docs/clients are whole: copied out and run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.integration.client_guides import QUESTION, ROOT, USAGE, program, run
from tests.support.daemons import RunningDaemon

NODE = ROOT / "tests" / "node"


def test_python_guide_program_answers(daemon: RunningDaemon, tmp_path: Path) -> None:
    """The guide's program exits with its own status if it cannot answer."""
    (tmp_path / "ask.py").write_text(program("python", "python"))
    ask = [sys.executable, "ask.py"]
    done = run([*ask, "embedded", QUESTION], daemon, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(USAGE, done.stdout)
    refused = run([*ask, "/no/such/model", QUESTION], daemon, tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("MODEL_NOT_FOUND: ")


def test_node_guide_program_answers(daemon: RunningDaemon, tmp_path: Path) -> None:
    """The guide's program needs only stock gRPC and the proto file."""
    if "CI" not in os.environ and not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node or npm is not installed")
    (tmp_path / "ask.mjs").write_text(program("node", "js"))
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE / name, tmp_path)
    installed = run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], daemon, tmp_path)
    assert installed.returncode == 0, installed.stderr
    ask = ["node", "ask.mjs", str(ROOT / "protos")]
    done = run([*ask, "embedded", QUESTION], daemon, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(USAGE, done.stdout)
    refused = run([*ask, "/no/such/model", QUESTION], daemon, tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("NOT_FOUND: ")
