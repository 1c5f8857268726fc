"""
Memory that pieces are read into: what was given back is used again, since new memory costs more time than the disk.

Any thread may drop a view; nothing of a buffer is written to while a view of it is left.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, cast

import numpy as np

SPARE_BYTES = 32 << 20
"""Bytes that are kept for later reads."""

SLACK = 64 << 10
"""A buffer serves pieces that are smaller by so many bytes: headers differ, and more would not be billed."""


class ReadBuffers:
    """See the top of this module."""

    def __init__(self) -> None:
        self._spare: deque[bytearray] = deque()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept and not in use; any thread may ask."""
        return sum(map(len, self._spare.copy()))

    def take(self, nbytes: int) -> memoryview:
        """Return a buffer of so many bytes, with any content; it is free again when no view of it is left."""
        buffer = self._fitting(nbytes)
        lent = np.frombuffer(buffer, np.uint8, nbytes)
        # The finalizer holds the buffer, and each view holds `lent`.
        weakref.finalize(lent, self._back, buffer).atexit = False
        return memoryview(cast("Any", lent))

    def clear(self) -> None:
        """Keep nothing."""
        self._spare.clear()

    def _fitting(self, nbytes: int) -> bytearray:
        for _ in range(len(self._spare)):
            try:
                buffer = self._spare.popleft()
            except IndexError:  # another thread cleared it
                break
            if nbytes <= len(buffer) <= nbytes + SLACK:
                return buffer
            self._spare.append(buffer)
        return bytearray(nbytes)

    def _back(self, buffer: bytearray) -> None:
        """Keep a buffer; the oldest ones go for it. A finalizer may run at any moment, so there is no lock."""
        if 0 < len(buffer) <= SPARE_BYTES:
            self._spare.append(buffer)
        while self._spare and self.nbytes > SPARE_BYTES:
            self._spare.popleft()
