"""Memory, open files and threads of another process, read from /proc or with ps and lsof."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

GRPC_NAMES = ("event_engine", "grpc_", "lifeguard")
"""
What the names of gRPC's own threads begin with: its pool, its timers, and the watch over the pool.

The pool keeps 4 to 16 threads, by the number of cores. Where all of them are busy, or get no processor, it starts one
more a second. Each ends after 20 seconds without work, which it does not have while a test polls. So their number says
how busy the machine is, and nothing about what a call left behind.
"""
MOST_GRPC_THREADS = 64
"""Most of them: the largest pool, and what a minute with a busy machine may add to it. A leak would know no bound."""


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


def own_threads(pid: int) -> int:
    """Return the number of threads of a process that are not gRPC's; without /proc, of all its threads."""
    return threads(pid) - grpc_threads(pid)


def grpc_threads(pid: int) -> int:
    """Return the number of gRPC's threads in a process; 0 without /proc."""
    count = 0
    for name in Path(f"/proc/{pid}/task").glob("*/comm"):
        with suppress(OSError):  # it has just ended
            count += name.read_text().startswith(GRPC_NAMES)
    return count
