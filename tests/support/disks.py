"""Disks whose size a test chooses, on any platform."""

from __future__ import annotations

import pytest

from daemon.kv.disk.limits import Space

KIB, MIB = 1 << 10, 1 << 20


def disk_has(monkeypatch: pytest.MonkeyPatch, *, total: int, free: int) -> None:
    """
    Let each disk have this size, for the disk tier and for the doctor.

    Args:
        monkeypatch: Undoes it.
        total: Bytes of the disk.
        free: Bytes that are free.
    """
    for module in ("daemon.kv.disk.files", "daemon.doctor.places"):
        monkeypatch.setattr(f"{module}.space_of", lambda _: Space(total, free))
