"""Servers that count what they hold, as tests start and ask them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.support.daemons import RunningDaemon, wait_until
from tests.support.leak_counter import EXACT, SIGNAL

NOTES = "held"
"""Name of the file with the counts, in a daemon's own folder."""


def counted(folder: Path, *program: str) -> list[str]:
    """Return the command line of a server, a module and its arguments, that tells what it holds."""
    variables = [f"{name}={value}" for name, value in EXACT.items()]
    return ["env", *variables, sys.executable, "-m", "tests.support.leak_counter", str(folder / NOTES), *program]


def held_by(daemon: RunningDaemon) -> dict[str, int]:
    """Return the `bytes` and `objects` that a counted server holds now."""
    notes = daemon.folder / NOTES
    before = _lines(notes)
    daemon.signal(SIGNAL)
    wait_until(lambda: _lines(notes) > before, "it has counted")
    held: dict[str, int] = json.loads(notes.read_text().splitlines()[-1])
    return held


def _lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
