"""Extents are counted once however many blocks use them, and freed with their last block."""

from __future__ import annotations

from collections import Counter

import pytest

from daemon.kv.extents import Extent, ExtentLedger, Run, Slot, runs


def _extent(blocks: int = 4, name: str = "payload") -> Extent:
    return Extent(name, nbytes=100 * blocks, buffers=2, blocks=blocks)


def test_an_extent_counts_from_its_first_block_to_its_last() -> None:
    ledger, extent = ExtentLedger(), _extent()
    for position in range(4):
        ledger.take(Slot(extent, position))
    assert (ledger.nbytes, ledger.buffers, extent.live) == (400, 2, 4)

    for position in range(3):
        ledger.drop(Slot(extent, position))
    assert (ledger.nbytes, ledger.buffers, extent.payload) == (400, 2, "payload")

    ledger.drop(Slot(extent, 3))
    assert (ledger.nbytes, ledger.buffers, extent.payload) == (0, 0, None)


def test_check_finds_every_kind_of_drift() -> None:
    ledger, extent = ExtentLedger(), _extent()
    ledger.take(Slot(extent, 0))
    ledger.check({extent: 1})

    for recount in ({}, {extent: 2}, {_extent(): 1}):
        with pytest.raises(AssertionError):
            ledger.check(recount)
    ledger.nbytes += 1
    with pytest.raises(AssertionError, match="bytes drifted"):
        ledger.check({extent: 1})


def test_check_finds_a_payload_that_was_freed_too_early() -> None:
    ledger, extent = ExtentLedger(), _extent()
    ledger.take(Slot(extent, 0))
    extent.payload = None

    with pytest.raises(AssertionError, match="no payload"):
        ledger.check(Counter({extent: 1}))


def test_consecutive_blocks_of_one_extent_are_one_run() -> None:
    extent = _extent()

    assert runs([Slot(extent, 0), Slot(extent, 1), Slot(extent, 2)]) == [Run("payload", 0, 3)]


def test_a_gap_a_step_back_and_another_extent_each_start_a_new_run() -> None:
    one, two = _extent(name="one"), _extent(name="two")

    slots = [Slot(one, 0), Slot(one, 2), Slot(one, 1), Slot(two, 2), Slot(two, 3), Slot(one, 3)]

    assert runs(slots) == [
        Run("one", 0, 1),
        Run("one", 2, 3),
        Run("one", 1, 2),
        Run("two", 2, 4),
        Run("one", 3, 4),
    ]


def test_no_blocks_are_no_runs() -> None:
    assert runs([]) == []
