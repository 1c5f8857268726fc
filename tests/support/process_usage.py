"""Memory, open files and threads of another process, read from /proc or with ps and lsof."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def resident_bytes(pid: int) -> int:
    """Return the private memory of a process in bytes; without /proc, its resident set."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        output = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
        return 1024 * int(output.stdout)
    lines = (line.split() for line in rollup.splitlines())
    return 1024 * sum(int(words[1]) for words in lines if words[0] in ("Private_Clean:", "Private_Dirty:"))


def open_files(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    if Path("/proc").is_dir():
        return len(os.listdir(f"/proc/{pid}/fd"))
    output = subprocess.run(["lsof", "-a", "-d", "0-9999", "-p", str(pid)], capture_output=True, text=True)
    return len(output.stdout.splitlines()) - 1


def threads(pid: int) -> int:
    """Return the number of threads of a process."""
    if Path("/proc").is_dir():
        return len(os.listdir(f"/proc/{pid}/task"))
    output = subprocess.run(["ps", "-M", "-p", str(pid)], capture_output=True, text=True, check=True)
    return len(output.stdout.splitlines()) - 1
