"""Extents: immutable device memory that holds the KV of many consecutive blocks in few buffers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

EXTENT_BLOCKS = 64
"""Most blocks of an extent. One buffer for each block and layer would hit Metal's limit of 499,000 buffers."""


@dataclass(slots=True, eq=False)
class Extent:
    """
    What one store call produced for one layer group: an opaque payload and who still uses it.

    Attributes:
        payload: Evaluated, compact arrays; None once no block uses it.
        nbytes: Exact bytes of the payload.
        buffers: Device buffers of the payload.
        blocks: Blocks it was made with.
        live: Blocks that still use it.
    """

    payload: object
    nbytes: int
    buffers: int
    blocks: int
    live: int = 0


class Slot(NamedTuple):
    """The place of one block: the block at `position` of `extent`."""

    extent: Extent
    position: int


class Run(NamedTuple):
    """Consecutive blocks `start` to `stop` (exclusive) of one extent."""

    payload: object
    start: int
    stop: int


@dataclass(slots=True)
class ExtentLedger:
    """
    Counts what extents hold; the only place where their bytes are added and subtracted.

    Attributes:
        nbytes: Bytes of all extents with a live block.
        buffers: Device buffers of those extents.
    """

    nbytes: int = 0
    buffers: int = 0
    _extents: set[Extent] = field(default_factory=set)

    def take(self, slot: Slot) -> None:
        """Count one more block that uses the slot's extent."""
        extent = slot.extent
        if extent.live == 0:
            self._extents.add(extent)
            self.nbytes += extent.nbytes
            self.buffers += extent.buffers
        extent.live += 1

    def drop(self, slot: Slot) -> None:
        """Count one block less; the last one frees the payload."""
        extent = slot.extent
        extent.live -= 1
        if extent.live == 0:
            self._extents.remove(extent)
            self.nbytes -= extent.nbytes
            self.buffers -= extent.buffers
            extent.payload = None

    def check(self, live: dict[Extent, int]) -> None:
        """
        Compare with a recount.

        Raises:
            AssertionError: If `live` (uses of each extent) and the ledger disagree.
        """
        assert set(live) == self._extents, "extents of the ledger differ from those in use"
        for extent, count in live.items():
            assert extent.live == count, f"extent counts {extent.live} blocks, {count} use it"
            assert extent.payload is not None, "a live extent has no payload"
            assert count <= extent.blocks, f"{count} blocks use an extent of {extent.blocks}"
        assert self.nbytes == sum(extent.nbytes for extent in live), "bytes drifted"
        assert self.buffers == sum(extent.buffers for extent in live), "buffers drifted"


def runs(slots: list[Slot]) -> list[Run]:
    """Join the slots of consecutive blocks into as few runs as possible, in order."""
    joined: list[Run] = []
    last: Extent | None = None
    for extent, position in slots:
        if extent is last and joined[-1].stop == position:
            joined[-1] = joined[-1]._replace(stop=position + 1)
        else:
            joined.append(Run(extent.payload, position, position + 1))
        last = extent
    return joined
