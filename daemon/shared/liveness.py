"""Signs of life: long work on a thread tells its watchdog that it makes progress. Pure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Sign = Callable[[], None]
"""Called each time the work has made progress; any thread."""

_here = threading.local()


def _nothing() -> None:
    """Do nothing, where there is no watchdog."""


def current() -> Sign:
    """Return the calling thread's sign, to hand it to other threads that work for it."""
    sign: Sign = getattr(_here, "sign", _nothing)
    return sign


def moved() -> None:
    """Tell the calling thread's watchdog, if there is one, that its work has made progress."""
    current()()


@contextmanager
def watched(sign: Sign) -> Iterator[None]:
    """Let `moved` call `sign` in this thread until the block ends."""
    outer = current()
    _here.sign = sign
    try:
        yield
    finally:
        _here.sign = outer
