"""
Two clocks that never go back, and which one is meant.

`time.monotonic` counts the time that the machine was awake: on macOS it is mach_absolute_time, on Linux
CLOCK_MONOTONIC, and both stand still during sleep. That is right for everything that waits for work: an engine is not
silent, and a step is not stuck, because the lid was closed for a night. It is wrong for a time-to-live: an hour is an
hour.
"""

from __future__ import annotations

import time

awake = time.monotonic
"""Seconds that the machine was awake."""

# On macOS, CLOCK_MONOTONIC_RAW is mach_continuous_time, which goes on during sleep; on Linux it stands still.
_WITH_SLEEP: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC_RAW)


def elapsed() -> float:
    """Return seconds that include sleep, and know nothing of changes of the date."""
    return time.clock_gettime(_WITH_SLEEP)
