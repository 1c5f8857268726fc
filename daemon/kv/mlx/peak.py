"""The peak of MLX's memory: of single computations, and of the process although they reset MLX's own counter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from daemon.shared.readings import agreed

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


class Measured:
    """
    What a computation took.

    Attributes:
        bytes: Most bytes that it held, beyond those before it.
    """

    bytes = 0


@contextmanager
def measuring() -> Iterator[Measured]:
    """Measure the peak of a computation, which is evaluated when it ends."""
    measured = Measured()
    mx.synchronize()
    before = mx.get_active_memory()
    reset()
    yield measured
    mx.synchronize()
    measured.bytes = int(agreed(mx.get_peak_memory() - before))
