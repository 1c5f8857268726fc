"""An extent is counted once, for any number of blocks that use it, and freed with its last block."""

from __future__ import annotations

import pytest

from daemon.kv.extent_ledger import ExtentLedger, Run, runs
from daemon.kv.keys import KEY_BYTES
from daemon.kv.nodes import Checkpoint, Extent, NamespaceCounters, Node


def _extent(blocks: int = 4, name: str = "payload", start: int = 0) -> Extent:
    return Extent(name, nbytes=100 * blocks, buffers=2, start=start, blocks=blocks)


def _node(extent: Extent, block: int) -> Node:
    return Node(bytes(KEY_BYTES), None, block + 1, NamespaceCounters(), (extent,))


def test_extent_counts_from_first_to_last_live_block() -> None:
    ledger, extent = ExtentLedger(), _extent(start=3)
    nodes = [_node(extent, block) for block in range(3, 7)]
    for node in nodes:
        ledger.take(extent, node)
    assert (ledger.nbytes, ledger.buffers, extent.live) == (400, 2, 4)

    for node in nodes[:3]:
        ledger.drop(extent, node)
    assert (ledger.nbytes, ledger.buffers, extent.payload) == (400, 2, "payload")

    ledger.drop(extent, nodes[3])
    assert (ledger.nbytes, ledger.buffers, extent.payload) == (0, 0, None)


def test_half_empty_extent_is_worth_compacting() -> None:
    ledger, extent = ExtentLedger(), _extent()
    nodes = [_node(extent, block) for block in range(4)]
    for node in nodes:
        ledger.take(extent, node)
    ledger.drop(extent, nodes[1])
    ledger.drop(extent, nodes[2])
    assert (ledger.sparse, ledger.reclaimable) == (set(), 0)

    ledger.drop(extent, nodes[0])

    assert (ledger.sparse, ledger.reclaimable) == ({extent}, 300)
    assert list(extent.spans()) == [(3, 4)]
    ledger.check([nodes[3]])


def test_extent_block_belongs_to_one_node() -> None:
    ledger, extent = ExtentLedger(), _extent()
    ledger.take(extent, _node(extent, 1))

    with pytest.raises(AssertionError, match="used twice"):
        ledger.take(extent, _node(extent, 1))


def test_checkpoint_counts_while_a_node_holds_it() -> None:
    ledger, checkpoint, node = ExtentLedger(), Checkpoint("state", 70, 3), Node(b"", None, 2, NamespaceCounters())
    ledger.keep(checkpoint, node)
    node.checkpoint = checkpoint
    assert (ledger.nbytes, ledger.buffers, ledger.checkpoints, checkpoint.depth) == (70, 3, 1, 2)
    ledger.check([node])

    ledger.lose(checkpoint)
    assert (ledger.nbytes, ledger.buffers, ledger.checkpoints, checkpoint.payload) == (0, 0, 0, None)


def test_ledger_check_finds_every_drift() -> None:
    ledger, extent = ExtentLedger(), _extent()
    node = _node(extent, 0)
    ledger.take(extent, node)
    ledger.check([node])

    for recount in ([], [node, _node(_extent(), 0)], [_node(_extent(), 0)]):
        with pytest.raises((AssertionError, IndexError)):
            ledger.check(recount)
    for name in ("nbytes", "buffers", "checkpoints", "reclaimable"):
        setattr(ledger, name, getattr(ledger, name) + 1)
        with pytest.raises(AssertionError, match="drifted"):
            ledger.check([node])
        setattr(ledger, name, getattr(ledger, name) - 1)
    ledger.check([node])


def test_ledger_check_finds_an_early_free() -> None:
    ledger, extent = ExtentLedger(), _extent()
    node = _node(extent, 0)
    ledger.take(extent, node)
    extent.payload = None

    with pytest.raises(AssertionError, match="no payload"):
        ledger.check([node])


def test_consecutive_extent_blocks_are_one_run() -> None:
    extent = _extent(start=5)

    assert runs([_node(extent, block) for block in (5, 6, 7)], 0) == [Run("payload", 0, 48)]


def test_another_extent_starts_a_new_run() -> None:
    one, two = _extent(name="one"), _extent(name="two", start=2)

    nodes = [_node(one, 0), _node(one, 1), _node(two, 2), _node(two, 3), _node(two, 4)]

    assert runs(nodes, 0) == [Run("one", 0, 32), Run("two", 0, 48)]


def test_block_without_its_window_cannot_be_restored() -> None:
    with pytest.raises(ValueError, match="block 3 has no KV of layer group 0"):
        runs([Node(b"", None, 3, NamespaceCounters(), (None,))], 0)


def test_no_extent_blocks_give_no_runs() -> None:
    assert runs([], 0) == []
