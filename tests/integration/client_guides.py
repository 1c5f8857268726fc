"""The programs of docs/clients, and what all of them print."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.daemons import RunningDaemon
from tools.embedded import corpus

ROOT = Path(__file__).resolve().parents[2]

GUIDES = ROOT / "docs" / "clients"

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
