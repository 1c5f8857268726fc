"""Priority of threads: long work that nobody waits for token by token stands back behind what computes tokens."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

QOS_CLASS_DEFAULT, QOS_CLASS_UTILITY = 0x15, 0x11
"""macOS: what threads have, and what work with progress has that takes seconds or minutes (sys/qos.h)."""

log = structlog.get_logger()


@contextmanager
def standing_back(platform: str = sys.platform, libc: Any = None) -> Iterator[None]:
    """
    Let the calling thread run where no other wants to. A system that refuses costs nothing but speed of others.

    On Linux niceness is not enough: a nice thread keeps its processor for some milliseconds when another wakes up, and
    each multiplication of a forward pass waits for all of its threads.

    Args:
        platform: As `sys.platform`: "darwin" or "linux".
        libc: The C library; for tests.
    """
    libc = libc or (ctypes.CDLL(None) if platform == "darwin" else None)
    _change(platform, libc, back=True)
    try:
        yield
    finally:
        _change(platform, libc, back=False)


def _change(platform: str, libc: Any, *, back: bool) -> None:
    try:
        if platform == "darwin":
            if failed := libc.pthread_set_qos_class_self_np(QOS_CLASS_UTILITY if back else QOS_CLASS_DEFAULT, 0):
                raise OSError(failed, os.strerror(failed))
        elif platform == "linux":
            os.sched_setscheduler(0, os.SCHED_IDLE if back else os.SCHED_OTHER, os.sched_param(0))
    except (OSError, AttributeError) as error:
        log.warning("a thread keeps its priority", error=str(error))
