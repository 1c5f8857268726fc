"""Callbacks of long work: reports of its progress, and the rest that a thread takes for the sake of others."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int], None]
"""Gets bytes done and bytes to do; may raise to abandon the work."""

Rest = Callable[[float], None]
"""Gets the processor seconds of the last piece of work; sleeps for as long as other threads need."""


def ignore(*_: object) -> None:
    """Do nothing: the default of a callback."""
