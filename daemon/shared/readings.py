"""
Readings that decisions of the MLX thread depend on and that two machines take differently: clocks, times, chance.

Alone, an engine uses what it reads. In a group of ranks, each rank uses what the first rank read (`engine/group/`), so
that all of them decide alike. `replace` puts that in place, once and before the engine is built.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

_HALF = 32
"""Bits of a random number that a reading carries exactly."""


def _own(value: float) -> float:
    return value


def _nothing() -> None:
    """Do nothing: alone, an engine tells its readings to no rank."""


_agreed: Callable[[float], float] = _own
_waits: Callable[[], None] = _nothing


def replace(reader: Callable[[float], float], waits: Callable[[], None]) -> None:
    """Let `agreed` ask `reader` from now on, and `about_to_wait` call `waits`."""
    global _agreed, _waits
    _agreed, _waits = reader, waits


def about_to_wait() -> None:
    """Let other ranks go on: this one waits for what they have to begin as well. Needed for speed alone."""
    _waits()


def agreed(value: float) -> float:
    """Return the reading that counts: this one, or that of the first rank of a group."""
    return _agreed(value)


def random_bits() -> int:
    """Return 64 random bits, the same on each rank of a group."""
    high, low = (int(agreed(float(secrets.randbits(_HALF)))) for _ in range(2))
    return high << _HALF | low
