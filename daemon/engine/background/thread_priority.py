"""Lowers the priority of threads that do long work, so that it does not slow down the computation of tokens."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from daemon.cache.callbacks import Rest
from daemon.shared.log_fields import cause

QOS_CLASS_DEFAULT, QOS_CLASS_UTILITY = 0x15, 0x11
"""macOS: the class that threads begin with, and that of work that takes seconds or minutes (sys/qos.h)."""

log = structlog.get_logger()


@dataclass(slots=True)
class Streams:
    """
    The state of streams that other threads may read.

    Attributes:
        active: Whether a request waited for its next token in the last turn. The MLX thread writes it; other threads
            read it, and rest meanwhile.
    """

    active: bool = False

    def are_active(self) -> bool:
        """Whether a request waited for its next token in the last turn; any thread."""
        return self.active


@contextmanager
def aside(streaming: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> Iterator[Rest]:
    """
    Give the calling thread the lowest priority, and the pause that it makes between pieces of its work.

    Cores that share a memory slow each other down whatever their priority. So while tokens are computed, the thread
    rests for as long as it works.

    Args:
        streaming: Whether a request waits for its next token now.
        sleep: Sleeps for so many seconds.
    """

    with standing_back():
        yield resting(streaming, sleep)


def resting(streaming: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> Rest:
    """
    Return the pause of a thread that keeps its priority: as long as its work, while tokens are computed.

    Args:
        streaming: Whether a request waits for its next token now.
        sleep: Sleeps for so many seconds.
    """

    def rest(seconds: float) -> None:
        if streaming():
            sleep(seconds)

    return rest


@contextmanager
def standing_back(platform: str = sys.platform, libc: Any = None) -> Iterator[None]:
    """
    Let the calling thread run only on processors that no other thread wants. A system that refuses is ignored.

    On Linux niceness is not enough: when another thread wakes up, a nice thread keeps its processor for some
    milliseconds more. Each multiplication of a forward pass waits for the last of its threads.

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
    """Return the function that changes a thread's class, the class it has now, and the low class."""
    if platform == "darwin":
        return partial(_set_qos, libc or ctypes.CDLL(None)), QOS_CLASS_DEFAULT, QOS_CLASS_UTILITY
    if platform == "linux":
        return _set_policy, os.sched_getscheduler(0), os.SCHED_IDLE  # type: ignore[attr-defined, unused-ignore]
    return lambda _: None, 0, 0


def _set_qos(libc: Any, qos: int) -> None:
    if failed := libc.pthread_set_qos_class_self_np(qos, 0):
        raise OSError(failed, os.strerror(failed))


def _set_policy(policy: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(0))  # type: ignore[attr-defined, unused-ignore]  # 0 is this thread


def _try(change: Callable[[int], None], to: int) -> None:
    try:
        change(to)
    except (OSError, AttributeError) as error:
        log.warning("thread_priority_unchanged", error=cause(error))
