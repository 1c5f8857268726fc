"""Priority of threads: long work that nobody waits for token by token stands back behind what computes tokens."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog

from daemon.cache.callbacks import Rest
from daemon.shared.log_fields import cause

QOS_CLASS_DEFAULT, QOS_CLASS_UTILITY = 0x15, 0x11
"""macOS: what threads have, and what work with progress has that takes seconds or minutes (sys/qos.h)."""

log = structlog.get_logger()


@contextmanager
def aside(streaming: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> Iterator[Rest]:
    """
    Let the calling thread stand back, and give it the rest that it takes between pieces of its work.

    Where cores share a memory, work of the lowest priority still slows down what the others do: while tokens are
    computed it rests for as long as it works.

    Args:
        streaming: Whether anybody waits for their next token now.
        sleep: Sleeps for so many seconds.
    """

    with standing_back():
        yield resting(streaming, sleep)


def resting(streaming: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> Rest:
    """
    Return the rest that a thread takes which others do wait for: as long as it works while tokens are computed.

    Args:
        streaming: Whether anybody waits for their next token now.
        sleep: Sleeps for so many seconds.
    """

    def rest(seconds: float) -> None:
        if streaming():
            sleep(seconds)

    return rest


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
    change, usual, low = _means(platform, libc)
    _try(change, low)
    try:
        yield
    finally:
        _try(change, usual)


def _means(platform: str, libc: Any) -> tuple[Callable[[int], None], int, int]:
    """Return how a thread changes its class, which it has, and which stands back."""
    if platform == "darwin":
        return partial(_set_qos, libc or ctypes.CDLL(None)), QOS_CLASS_DEFAULT, QOS_CLASS_UTILITY
    if platform == "linux":
        return _set_policy, os.sched_getscheduler(0), os.SCHED_IDLE
    return lambda _: None, 0, 0


def _set_qos(libc: Any, qos: int) -> None:
    if failed := libc.pthread_set_qos_class_self_np(qos, 0):
        raise OSError(failed, os.strerror(failed))


def _set_policy(policy: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(0))  # 0 is the calling thread


def _try(change: Callable[[int], None], to: int) -> None:
    try:
        change(to)
    except (OSError, AttributeError) as error:
        log.warning("a thread keeps its priority", error=cause(error))
