"""Stores what a request needs to go on after a stored path, besides full attention: windows and recurrent states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from daemon.kv.evictor import Evictor
from daemon.kv.extent_ledger import EXTENT_BLOCKS
from daemon.kv.keys import partition_of
from daemon.kv.lease import PrefixLease
from daemon.kv.nodes import Node
from daemon.kv.spec import KVSource, LayerGroup, PrefixSpec, packed
from daemon.kv.trie import PrefixTrie


def make_resumable(evictor: Evictor, lease: PrefixLease, spec: PrefixSpec, source: KVSource, *, passing: bool) -> None:
    """Store the windows and the recurrent states that a request needs to go on after a leased path."""
    for index, group in enumerate(spec.groups):
        if group.window is not None and not _fill_window(evictor, lease, index, group, source):
            return
    if spec.state_bytes and lease.checkpoint is None:
        partition = partition_of(lease.namespace)
        room = evictor.make_room(partition, 1, spec.state_bytes, new_blocks=False)
        checkpoint = source.checkpoint(lease.tokens) if room else None
        if checkpoint is not None:
            evictor.trie.attach(lease, checkpoint)
    if spec.windowed and not passing:
        _thin_windows(evictor.trie, lease, spec)


def _fill_window(evictor: Evictor, lease: PrefixLease, index: int, group: LayerGroup, source: KVSource) -> bool:
    """Store the blocks that a window sees at the end of a leased path, and tell whether all of them are stored."""
    visible = lease.nodes[len(lease.nodes) - group.visible(len(lease.nodes)) :]
    for first, last in _stretches([node for node in visible if node.extents[index] is None]):
        room = evictor.make_room(partition_of(lease.namespace), last - first, group.block_bytes, new_blocks=False)
        if room < last - first:
            return False
        evictor.trie.fill(lease, index, packed(source, index, first, last))
    return True


def _thin_windows(trie: PrefixTrie, lease: PrefixLease, spec: PrefixSpec) -> None:
    """
    Drop windows that were stored only in passing, before the resume point at the end of a leased path.

    They go back to the previous resume point, or to a fork: behind a fork another prompt may need them.
    """
    *way, end = lease.nodes
    end.resumable = True
    passed: list[Node] = []
    for node in reversed(way):
        if node.resumable or node.degree > 1:
            break
        passed.append(node)
    for index, group in enumerate(spec.groups):
        if group.window is not None:
            trie.thin([node for node in passed if end.depth - node.depth >= group.visible(end.depth)], index)


def _stretches(nodes: Sequence[Node]) -> Iterator[tuple[int, int]]:
    """Yield the first block, and one past the last, of each stretch of consecutive nodes, an extent long at most."""
    first = 0
    for position in range(1, len(nodes) + 1):
        full = position - first == EXTENT_BLOCKS
        if position == len(nodes) or full or nodes[position].depth != nodes[position - 1].depth + 1:
            yield nodes[first].depth - 1, nodes[position - 1].depth
            first = position
