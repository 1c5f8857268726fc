"""Reads the memory pressure of the system, and frees cached prefixes and idle models when it is high."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import structlog

RELIEF_SECONDS = 10.0
"""Seconds between two reliefs: freed memory takes a while to show, as Linux reports an average of ten seconds."""

PSI = Path("/proc/pressure/memory")
_SYSCTL = b"kern.memorystatus_vm_pressure_level"
_SOME_STALLED = 20.0
"""Percent of the time in which at least one task waited for memory, from which on the level is WARNING."""
_ALL_STALLED = 10.0
"""Percent of the time in which all tasks waited for memory, from which on the level is CRITICAL."""

log = structlog.get_logger()


class Level(IntEnum):
    """How short of memory the system is."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2


class Source(Protocol):
    """Reads the level; cheap enough for every second."""

    def __call__(self) -> Level:
        """Return the level now; NORMAL if it is unknown."""


def normal() -> Level:
    """Return NORMAL: the source of a system that does not report its pressure."""
    return Level.NORMAL


class LinuxPressure:
    """
    The share of the last ten seconds in which tasks waited for memory.

    Args:
        path: The kernel's file of pressure stall information.
    """

    def __init__(self, path: Path = PSI) -> None:
        self._path = path

    def __call__(self) -> Level:
        """Return the level now."""
        try:
            text = self._path.read_text()
        except OSError:  # a kernel without it
            return Level.NORMAL
        shares = {kind: float(share) for kind, share in re.findall(r"^(some|full) avg10=([\d.]+)", text, re.MULTILINE)}
        if shares.get("full", 0.0) >= _ALL_STALLED:
            return Level.CRITICAL
        return Level.WARNING if shares.get("some", 0.0) >= _SOME_STALLED else Level.NORMAL


class MacPressure:
    """
    The level of the kernel's own memory status: 1 normal, 2 warning, 4 critical.

    Args:
        read: Returns the kernel's level; None if it is unknown.
    """

    def __init__(self, read: Callable[[], int | None]) -> None:
        self._read = read

    def __call__(self) -> Level:
        """Return the level now."""
        value = self._read() or 0
        if value >= 4:
            return Level.CRITICAL
        return Level.WARNING if value >= 2 else Level.NORMAL


def sysctl_level() -> int | None:
    """Return the kernel's level on a Mac; None on other systems."""
    value = ctypes.c_int(0)
    size = ctypes.c_size_t(ctypes.sizeof(value))
    try:
        failed = ctypes.CDLL(None).sysctlbyname(_SYSCTL, ctypes.byref(value), ctypes.byref(size), None, 0)
    except (OSError, AttributeError):
        return None
    return None if failed else value.value


def system_pressure(platform: str = sys.platform) -> Source:
    """Return the source of this system."""
    if platform == "darwin":
        return MacPressure(sysctl_level)
    return LinuxPressure() if platform.startswith("linux") else normal


class Relief:
    """
    Frees memory while the system is short of it: cached prefixes first, then idle models, least recently used first.

    At WARNING, half of the prefixes, or one model once there are none; at CRITICAL, all prefixes and all idle models.

    Args:
        source: Returns the level.
        prefix_bytes: Returns the bytes of cached prefixes.
        shed_prefixes: Frees at least so many bytes of prefixes, and returns how many became free.
        shed_models: Frees at least so many bytes of idle models, and returns how many became free.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        source: Source,
        prefix_bytes: Callable[[], int],
        shed_prefixes: Callable[[int], int],
        shed_models: Callable[[int], int],
        clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._prefix_bytes = prefix_bytes
        self._shed_prefixes = shed_prefixes
        self._shed_models = shed_models
        self._clock = clock
        self._next = clock()
        self._told = Level.NORMAL
        """The level that was logged last: pressure that others cause lasts for hours, with nothing left to free."""

    def check(self) -> int:
        """Free memory as the level demands, at most every RELIEF_SECONDS, and return the bytes that became free."""
        level = self._source()
        if level is Level.NORMAL:
            self._told = level
        if level is Level.NORMAL or self._clock() < self._next:
            return 0
        self._next = self._clock() + RELIEF_SECONDS
        cached = self._prefix_bytes()
        prefixes = self._shed_prefixes(cached if level is Level.CRITICAL else (cached + 1) // 2) if cached else 0
        models = 0
        if level is Level.CRITICAL:
            models = self._shed_models(sys.maxsize)
        elif not prefixes:
            models = self._shed_models(1)
        if prefixes or models or level is not self._told:
            log.warning("memory_pressure", pressure=level.name.lower(), prefix_bytes=prefixes, model_bytes=models)
        self._told = level
        return prefixes + models
