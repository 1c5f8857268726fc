"""Failpoints: each makes its fault at its place, and without the variable they do nothing."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.shared.failpoints import ENV, PLACES, FailpointError, failpoint, parse

ROOT = Path(__file__).resolve().parents[3]
HITS = "from daemon.shared.failpoints import failpoint\nfor _ in range(3): failpoint('token.first')"


def run(setting: str) -> subprocess.CompletedProcess[str]:
    """Hit one place three times in a process of its own."""
    environ = {**os.environ, ENV: setting}
    return subprocess.run([sys.executable, "-c", HITS], env=environ, cwd=ROOT, capture_output=True, text=True)


def test_unset_failpoints_do_nothing() -> None:
    """They do not even look up a name: the daemon runs with this function."""
    failpoint("no such place")


@pytest.mark.parametrize(
    ("setting", "status", "shown"),
    [
        ("token.first=kill", -signal.SIGKILL, ""),
        ("token.first=kill@3", -signal.SIGKILL, ""),
        ("token.first=kill@4", 0, ""),
        ("kv.publish=kill", 0, ""),
        ("token.first=sleep:0.001", 0, ""),
        ("token.first=raise", 1, "the failpoint token.first was told to fail"),
        ("nowhere=kill", 1, "which is no failpoint; known are lock.taken"),
        ("token.first=dance", 1, "it can be kill, stop, raise or sleep:SECONDS"),
    ],
)
def test_failpoint_fires_as_configured(setting: str, status: int, shown: str) -> None:
    """At the named place and hit; an unknown fault is refused at the start."""
    done = run(setting)
    assert done.returncode == status
    assert shown in done.stderr


def test_failpoint_chance_is_drawn_for_each_hit() -> None:
    """The draw decides."""
    point = parse("kv.publish=raise%25")["kv.publish"]
    point.hit(lambda: 0.25)
    with pytest.raises(FailpointError):
        point.hit(lambda: 0.24)


def test_every_failpoint_is_unique_and_documented() -> None:
    """A name without its place would be a test that cannot fail."""
    called = []
    for path in (ROOT / "daemon").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                assert isinstance(node.args[0], ast.Constant)
                called.append(str(node.args[0].value))
    assert set(called) == set(PLACES)
    documented = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{place}`" in documented for place in PLACES)
