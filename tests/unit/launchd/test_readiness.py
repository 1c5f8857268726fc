"""What is told of a service that ends as soon as launchd has started it."""

from __future__ import annotations

from pathlib import Path

from daemon.launchd.agent import Agent
from daemon.launchd.job import Job
from daemon.launchd.logs import LogTail
from daemon.launchd.readiness import _early_exit_text

KEPT_OUT = """\
Exception ignored in running getpath:
Traceback (most recent call last):
  File "<frozen getpath>", line 358, in <module>
PermissionError: [Errno 1] Operation not permitted: '/Users/ada/Documents/mlx-sidecar/.venv/pyvenv.cfg'
Fatal Python error: error evaluating path
Python runtime state: core initialized

Current thread 0x00000001f3c5d0c0 (most recent call first):
  <no Python frame>
"""
"""What Python says where macOS keeps a service from the folder of its environment."""


def told(folder: Path, output: str) -> str:
    """Return what is told of a service with some output."""
    stderr = folder / "launchd.log"
    tail = LogTail(stderr)
    stderr.write_text(output)
    agent = Agent(("/Users/ada/Documents/mlx-sidecar/.venv/bin/python",), {}, stderr)
    return _early_exit_text(agent, Job("spawn scheduled", None, 1, "1", 60, None), tail)


def test_installation_that_macos_keeps_a_service_from_is_told_as_such(tmp_path: Path) -> None:
    """A checkout in Documents works in Terminal. The last lines of Python do not say what is wrong."""
    text = told(tmp_path, KEPT_OUT)
    assert "install mlx-sidecar elsewhere" in text
    assert "Privacy & Security" in text


def test_service_that_ends_for_another_reason_gets_no_such_advice(tmp_path: Path) -> None:
    text = told(tmp_path, "mlx-sidecar: max_models must be a whole number.\n")
    assert 'it said: "mlx-sidecar: max_models must be a whole number."' in text
    assert "Privacy" not in text
