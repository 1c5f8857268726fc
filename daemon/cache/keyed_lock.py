"""Locks by key: threads that want the same file or model work in turn, and the later ones find the work done."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from daemon.shared import liveness

K = TypeVar("K", bound=Hashable)

_LOOK_SECONDS = 1.0
"""How often a waiting thread looks whether the thread before it moves on."""


class KeyedLock(Generic[K]):
    """A lock for each key. Any thread. A lock exists while a thread has it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[K, _Lock] = WeakValueDictionary()
        self._guard = threading.Lock()

    @contextmanager
    def locked(self, key: K) -> Iterator[None]:
        """
        Wait for the lock of a key and hold it for the length of a block.

        A waiting thread shows signs of life (`liveness`) as long as the holder does. So a holder that hangs is noticed,
        and a thread that waits for a slow holder is not taken for one that hangs.
        """
        with self._guard:
            lock = self._locks.setdefault(key, _Lock())
        with lock.held():
            yield


class _Lock:
    """The lock of one key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._signs = 0
        """Signs of life that holders gave so far. Only the holder adds to them; waiting threads read them."""

    @contextmanager
    def held(self) -> Iterator[None]:
        signs_seen = self._signs
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            if signs_seen != self._signs:
                signs_seen = self._signs
                liveness.moved()
        sign_of_this_thread = liveness.current()

        def sign() -> None:
            self._signs += 1
            sign_of_this_thread()

        try:
            with liveness.watched(sign):
                yield
        finally:
            self._lock.release()
