"""
Two monotonic clocks: `awake` stands still while the machine sleeps, `elapsed` does not.

`time.monotonic` counts the time that the machine was awake: it is mach_absolute_time on macOS and CLOCK_MONOTONIC on
Linux. Limits on work need it: an engine is not silent because the lid was closed for a night. A time to live needs
`elapsed`: an hour is an hour.
"""

from __future__ import annotations

import time

awake = time.monotonic
"""Return the seconds that the machine was awake, since some moment in the past."""

# On macOS, CLOCK_MONOTONIC_RAW is mach_continuous_time, which goes on during sleep; on Linux it stands still.
_WITH_SLEEP: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC_RAW)


def elapsed() -> float:
    """Return the seconds since some moment in the past, sleep included. Changes of the date do not count."""
    return time.clock_gettime(_WITH_SLEEP)
