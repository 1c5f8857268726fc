"""What the README shows works as it is shown; only the model is another one, because tests have no network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.running import RunningDaemon

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
HUB_MODEL = "mlx-community/Qwen3-0.6B-4bit"


def test_the_python_example_answers(daemon: RunningDaemon) -> None:
    """It prints an answer and its usage."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example.replace(HUB_MODEL, "embedded")],
        env=daemon.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage(prompt_tokens=" in done.stdout


def test_the_commands_of_the_first_steps_work(daemon: RunningDaemon) -> None:
    """Those that talk to a daemon, in their order."""
    shown = re.findall(r"^mlx-sidecar ((?:run|ps|stop).*?)(?: {2,}#.*)?$", README, re.MULTILINE)
    assert len(shown) == 3
    for line in shown:
        done = subprocess.run(
            f"{sys.executable} -m daemon {line.replace(HUB_MODEL, 'embedded')}",
            shell=True,
            env=daemon.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
