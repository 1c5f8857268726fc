"""
Wires weights: the system keeps them in physical memory, where it can neither compress nor swap them out.

MLX has one limit for the process. What is allocated first is wired up to it, and weights are allocated when a model is
loaded, so the limit is the bytes of the loaded weights. It is set when they change: after a load, and after a model was
dropped. It is never set for a request. Drivers of macOS had panics where it was set and unset around every request, and
large models are slow on some machines without it; so it is off unless the configuration asks for it.

MLX wires by Metal's residency sets, which macOS has since version 15. On an older one it takes the limit and wires
nothing, without a word.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import mlx.core as mx
import structlog

from daemon.engine.device import working_set

OLDEST_DARWIN = 24
"""The kernel of macOS 15."""

log = structlog.get_logger()


class Wiring:
    """
    Keeps the wired limit at the bytes of the loaded weights. Runs on the MLX thread.

    Args:
        set_limit: Sets the limit in bytes; None where nothing is to be wired, or cannot be.
        most: Most bytes that the device allows.
    """

    def __init__(self, set_limit: Callable[[int], object] | None = None, most: int = 0) -> None:
        self._set_limit = set_limit
        self._most = most
        self._wired = 0

    def update(self, weights: int) -> None:
        """Wire the weights of loaded models; an error of the system is logged, and nothing is tried any more."""
        wanted = min(weights, self._most)
        if self._set_limit is None or wanted == self._wired:
            return
        try:
            self._set_limit(wanted)
        except Exception:
            log.exception("weights_not_wired", model_bytes=wanted)
            self._set_limit = None
            return
        self._wired = wanted


def wiring(wanted: bool) -> Wiring:
    """Return what wires weights, if that is wanted and the device is one that can."""
    if not wanted:
        return Wiring()
    most = working_set() if mx.metal.is_available() and _has_residency_sets(os.uname().release) else None
    if most is None:
        log.warning("weights_cannot_be_wired")
        return Wiring()
    return Wiring(mx.set_wired_limit, most)


def _has_residency_sets(release: str) -> bool:
    """Return whether macOS can wire what MLX asks for, by the release of its kernel, such as "24.6.0"."""
    major = release.partition(".")[0]
    return major.isdecimal() and int(major) >= OLDEST_DARWIN
