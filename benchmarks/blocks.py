"""Blocks without KV, for measuring the index alone."""

from __future__ import annotations

from daemon.kv.extents import Extent

BLOCK_BYTES = 1024


def fake_extents(start: int, stop: int) -> list[Extent]:
    """Return what a store of blocks `start` to `stop` would have packed."""
    blocks = stop - start
    return [Extent((), blocks * BLOCK_BYTES, 1, blocks)]
