"""Pieces that are read from the disk: once for all that wait, and only if memory has room for them."""

from __future__ import annotations

import pytest

from daemon.kv.spec import PrefixSpec
from tests.unit.kv.disk.fake_disk import NAME, TOKENS, written
from tests.unit.kv.fake_kv import HYBRID, PLAIN, prompt


@pytest.mark.parametrize("parts", [PLAIN, HYBRID])
def test_waiting_requests_read_a_piece_once(parts: PrefixSpec) -> None:
    """It is also stored once, and nothing stays staged."""
    disk = written(TOKENS, parts=parts)
    stored = disk.prefixes.cache.counters.inserts
    restores = [disk.restoring(NAME, [*TOKENS, last]) for last in (8, 9)]
    assert disk.tier.staged == disk.tier.catalog.nbytes
    disk.settle()
    assert all(restore.over() for restore in restores)
    assert disk.tier.work.counters.read_bytes == disk.tier.catalog.nbytes
    assert disk.prefixes.cache.counters.inserts - stored == 4
    assert disk.tier.staged == 0
    assert disk.prefixes.reuse(NAME, [*TOKENS, 9]) == TOKENS


def test_closed_restore_leaves_its_pieces_to_others() -> None:
    """A request that is cancelled while the disk reads does not end the read of another one."""
    disk = written(TOKENS)
    gone, stays = disk.restoring(NAME, [*TOKENS, 8]), disk.restoring(NAME, [*TOKENS, 9])
    gone.close()
    disk.settle()
    assert stays.over()
    assert disk.prefixes.reuse(NAME, [*TOKENS, 9]) == TOKENS


def test_piece_that_others_cannot_read_ends_all_restores() -> None:
    """Each computes its prompt, and nothing stays staged."""
    disk = written(TOKENS)
    restores = [disk.restoring(NAME, [*TOKENS, last]) for last in (8, 9)]
    disk.files.fault = OSError(5, "read")
    disk.settle()
    assert all(restore.over() for restore in restores)
    assert disk.tier.staged == 0
    assert disk.prefixes.reuse(NAME, [*TOKENS, 9]) == []


def test_nothing_is_staged_without_room_in_memory() -> None:
    """Neither what would be read nor what would be written; requests go on."""
    disk = written(TOKENS)
    disk.has_room = False
    assert disk.restore(NAME, [*TOKENS, 9]) == []
    disk.prefixes.store(NAME, prompt(5, 6))
    assert disk.prefixes.reuse(NAME, [*prompt(5, 6), 9]) == prompt(5, 6)
    disk.settle()
    assert disk.tier.catalog.blocks == 4
    assert disk.tier.work.counters.read_bytes == disk.tier.staged == 0
    disk.has_room = True
    assert disk.restore(NAME, [*TOKENS, 9]) == TOKENS


def test_arrays_of_a_piece_count_beside_it() -> None:
    """Each request that waits copies a piece, and all of them take turns."""
    disk = written(TOKENS, prompt(5, 6))
    restores = [disk.restoring(NAME, [*tokens, 9]) for tokens in (TOKENS, prompt(5, 6))]
    disk.work()
    assert disk.tier.staged == disk.tier.catalog.nbytes
    for _ in restores:
        disk.tier.step()
    assert disk.tier.staged == 2 * disk.tier.catalog.nbytes
    disk.settle()
    assert all(restore.over() for restore in restores)
    assert disk.tier.staged == 0


def test_piece_without_room_for_its_arrays_is_not_copied() -> None:
    """Memory became short since it was read; the request computes its prompt."""
    disk = written(TOKENS)
    restore = disk.restoring(NAME, [*TOKENS, 9])
    disk.work()
    disk.has_room = False
    disk.tier.step()
    assert restore.over()
    assert disk.tier.staged == 0
    assert disk.prefixes.reuse(NAME, [*TOKENS, 9]) == []
