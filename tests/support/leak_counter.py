"""Starts servers that count their own memory and objects, and reads the counts; see `leak_counter_process.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.support.daemons import RunningDaemon, wait_until
from tests.support.leak_counter_process import COUNT_SIGNAL, EXACT

COUNTS_FILE = "counts.jsonl"
"""Name of the file with the counts, in a daemon's own folder."""


def counting_command(folder: Path, *program: str) -> list[str]:
    """
    Return the command line of a server that counts what it holds.

    Args:
        folder: The daemon's own folder, which gets the file with the counts.
        program: The server's module and its arguments.
    """
    variables = [f"{name}={value}" for name, value in EXACT.items()]
    counter = [sys.executable, "-m", "tests.support.leak_counter_process", str(folder / COUNTS_FILE)]
    return ["env", *variables, *counter, *program]


def counts_of(daemon: RunningDaemon) -> dict[str, int]:
    """Return the `bytes` and `objects` that a server started by `counting_command` holds now."""
    file = daemon.folder / COUNTS_FILE
    lines_before = _lines(file)
    daemon.signal(COUNT_SIGNAL)
    wait_until(lambda: _lines(file) > lines_before, "the server has counted")
    counts: dict[str, int] = json.loads(file.read_text().splitlines()[-1])
    return counts


def _lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
