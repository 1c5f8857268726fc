"""What a process holds, seen from outside."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has in use and shares with nobody; where that is unknown, its resident set."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
        return 1024 * int(shown.stdout)
    lines = (line.split() for line in rollup.splitlines())
    return 1024 * sum(int(words[1]) for words in lines if words[0] in ("Private_Clean:", "Private_Dirty:"))


def open_files(pid: int) -> int:
    """Return how many descriptors a process has open."""
    if Path("/proc").is_dir():
        return len(os.listdir(f"/proc/{pid}/fd"))
    shown = subprocess.run(["lsof", "-a", "-d", "0-9999", "-p", str(pid)], capture_output=True, text=True)
    return len(shown.stdout.splitlines()) - 1


def threads(pid: int) -> int:
    """Return how many threads a process has."""
    if Path("/proc").is_dir():
        return len(os.listdir(f"/proc/{pid}/task"))
    shown = subprocess.run(["ps", "-M", "-p", str(pid)], capture_output=True, text=True, check=True)
    return len(shown.stdout.splitlines()) - 1
