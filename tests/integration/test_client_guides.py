"""The programs of docs/clients are whole: copied out and run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemons import RunningDaemon
from tools.embedded import corpus

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "clients"
NODE = ROOT / "tests" / "node"
EXAMPLE = next(corpus.held_out(seed=62, tokens_hint=100))
QUESTION = f"{EXAMPLE.context} {EXAMPLE.question}"
USAGE = r"\n\d+ of [1-9]\d* prompt tokens were cached\n$"


def program(language: str, fence: str) -> str:
    """Return the one program of a guide."""
    (found,) = re.findall(rf"```{fence}\n(.*?)```", (GUIDES / f"{language}.md").read_text(), re.DOTALL)
    return str(found)


def run(command: list[str], daemon: RunningDaemon, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program as the guide says."""
    return subprocess.run(command, cwd=folder, env=daemon.environ, capture_output=True, text=True, timeout=300)


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
