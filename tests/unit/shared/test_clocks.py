"""Clocks: which of them stands still while the machine sleeps, and where each is used."""

from __future__ import annotations

import importlib
import time

import pytest

from daemon.server.app import Daemon
from daemon.shared import clocks
from daemon.shared.config import Config


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="macOS has no such clock")
def test_elapsed_time_includes_sleep_on_linux() -> None:
    """CLOCK_BOOTTIME does, CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW do not."""
    clock: int = vars(time)["CLOCK_BOOTTIME"]
    before = time.clock_gettime(clock)
    assert before <= clocks.elapsed() <= time.clock_gettime(clock)


def test_elapsed_time_includes_sleep_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """There CLOCK_MONOTONIC_RAW does; the module is read as it would be on a Mac."""
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    asked: list[int] = []
    with monkeypatch.context() as mac:
        mac.setattr(time, "clock_gettime", asked.append)
        importlib.reload(clocks)
        clocks.elapsed()
    monkeypatch.undo()
    importlib.reload(clocks)
    assert asked == [time.CLOCK_MONOTONIC_RAW]


def test_engine_is_judged_by_waking_time_only() -> None:
    """An engine that slept with the machine was not silent; a daemon that slept is as old as the clock says."""
    daemon = Daemon(Config())
    assert daemon._supervisor._clock is clocks.awake is time.monotonic
    assert daemon._stats._clock is clocks.elapsed
