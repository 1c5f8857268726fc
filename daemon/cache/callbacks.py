"""Callbacks of long work: reports of its progress, and pauses that leave the processor to other threads."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int], None]
"""Gets bytes done and bytes to do; may raise to abandon the work."""

Rest = Callable[[float], None]
"""Gets the processor seconds of the last piece of work; sleeps for as long as other threads need."""


def ignore(*_: object) -> None:
    """Do nothing: the default of a callback."""
