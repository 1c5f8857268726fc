"""The peak of MLX's memory: of single evaluations, and of the process although they reset MLX's own counter."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx

from daemon.shared.readings import told

_most = 0
"""The peak before the last reset. MLX counts for the process, so this does as well."""


def process_peak() -> int:
    """Return the most bytes that were in use at once since the start."""
    return max(_most, mx.get_peak_memory())


def reset() -> None:
    """Let MLX count a new peak, from what is in use now."""
    global _most
    _most = process_peak()
    mx.reset_peak_memory()


class Meter:
    """
    The peak of a computation in slices. What other work does between them does not count.

    Attributes:
        most: Most bytes that the computation held so far, beyond those before it.
        seconds: Time that it took so far.
    """

    def __init__(self) -> None:
        self.most = 0
        self.seconds = 0.0
        self._held = 0

    def eval(self, arrays: Any) -> None:
        """Evaluate the next slice of the computation."""
        mx.synchronize()
        before = mx.get_active_memory()
        reset()
        began = time.perf_counter()
        mx.eval(arrays)
        mx.synchronize()
        self.seconds += told(time.perf_counter() - began)
        self.most = max(self.most, self._held + int(told(mx.get_peak_memory() - before)))
        self._held += int(told(mx.get_active_memory() - before))
