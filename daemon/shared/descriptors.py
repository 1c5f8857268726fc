"""
Closes the descriptors that a process inherits and has no use for.

A process that is spawned without a fork inherits the daemon's lock, and the sockets of others. If it outlived the
daemon, the lock would keep the next daemon from starting.
"""

from __future__ import annotations

import os
import resource

MOST = 1 << 20
"""Descriptors beyond are not looked for, where the limit of open files is higher or there is none."""


def close_others(*kept: int) -> None:
    """Close all descriptors but the standard streams and those."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # without a limit: -1 on Linux, a huge number on macOS
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, soft if 0 <= soft < MOST else MOST)
