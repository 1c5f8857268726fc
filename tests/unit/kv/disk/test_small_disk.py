"""A disk on which `auto` comes to less than a piece is told once, at the start."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from daemon.kv.disk.limits import Space
from tests.unit.kv.disk.fake_disk import FakeDisk, MemoryFiles
from tests.unit.kv.fake_kv import PLAIN, FakePrefixes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("wanted", "free", "told"), [(None, 319 * MIB, True), (None, 320 * MIB, False), (MIB, 319 * MIB, False)]
)
def test_budget_below_a_piece_is_logged(wanted: int | None, free: int, told: bool) -> None:
    """A number that was set is meant."""
    files = MemoryFiles()
    files.disk = Space(free, free)
    with capture_logs() as lines:
        FakeDisk(FakePrefixes(parts=PLAIN), files, wanted).settle()
    small = [line for line in lines if line["event"] == "kv_disk_too_small"]
    assert [line["budget_bytes"] for line in small] == ([free // 20] if told else [])
