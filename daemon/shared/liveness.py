"""Signs of life: long work tells the watchdog of its thread that it moves on. Pure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Sign = Callable[[], None]
"""Called whenever work has moved on; any thread."""

_here = threading.local()


def _nothing() -> None:
    """Tell no watchdog: there is none."""


def current() -> Sign:
    """Return the sign of the calling thread's work, for the threads that it lets work for it."""
    sign: Sign = getattr(_here, "sign", _nothing)
    return sign


def moved() -> None:
    """Tell the watchdog of the calling thread, if it has one, that its work has moved on."""
    current()()


@contextmanager
def watched(sign: Sign) -> Iterator[None]:
    """Let `moved` call `sign` in this thread for the length of a block."""
    before = current()
    _here.sign = sign
    try:
        yield
    finally:
        _here.sign = before
