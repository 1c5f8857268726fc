"""Priority of threads: long work that nobody waits for token by token gives way to what computes tokens."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any

import structlog

NICENESS = 10
"""A tenth of the processor time of a thread that computes, while one wants it; all that is left over otherwise."""

QOS_CLASS_UTILITY = 0x11
"""macOS: work with progress that takes seconds or minutes. It may run on efficiency cores (sys/qos.h)."""

log = structlog.get_logger()


def give_way(platform: str = sys.platform, libc: Any = None) -> None:
    """
    Lower the priority of the calling thread, for good. A system that refuses costs nothing but speed of others.

    Args:
        platform: As `sys.platform`: "darwin" or "linux".
        libc: The C library; for tests.
    """
    try:
        if platform == "darwin":
            libc = libc or ctypes.CDLL(None)
            if failed := libc.pthread_set_qos_class_self_np(QOS_CLASS_UTILITY, 0):
                raise OSError(failed, os.strerror(failed))
        elif platform == "linux":  # where niceness is the thread's, not the process's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    except (OSError, AttributeError) as error:
        log.warning("a thread keeps its usual priority", error=str(error))
