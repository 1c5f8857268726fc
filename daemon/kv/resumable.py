"""
Stores what a request needs to go on at the end of a stored path: tails, windows and recurrent states.

At the end of a block, a window shares the blocks that it sees with other positions. A tail is complete in itself: it
has the KV of its tokens, all tokens that the windows see before its end, and the checkpoint. No later store changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from daemon.kv.evictor import Room
from daemon.kv.extent_ledger import EXTENT_BLOCKS, Run, runs
from daemon.kv.keys import TOKEN_BYTES, pack
from daemon.kv.lease import PrefixLease
from daemon.kv.nodes import Node
from daemon.kv.place import MOST_CHILDREN, tails_along
from daemon.kv.spec import KVSource, LayerGroup, PrefixSpec, packed
from daemon.kv.trie import PrefixTrie


def group_runs(lease: PrefixLease, index: int, group: LayerGroup) -> list[Run]:
    """Return where the KV of one layer group of a match is, in order. A window needs only what it can see."""
    nodes, blocks = lease.nodes, len(lease.nodes)
    if group.window is not None and blocks and nodes[-1].is_tail:
        extent = nodes[-1].extents[index]
        assert extent is not None, "a tail lacks its window"
        return [Run(extent.payload, 0, group.seen(lease.tokens))]
    found = runs(nodes[blocks - group.visible(blocks) :], index)
    if lease.unused:
        found[-1] = found[-1]._replace(stop=found[-1].stop - lease.unused)
    return found


def make_resumable(
    room: Room,
    lease: PrefixLease,
    tokens: Sequence[int],
    spec: PrefixSpec,
    source: KVSource,
    *,
    passing: bool,
) -> None:
    """
    Let requests go on after some tokens.

    Args:
        room: What the store may take.
        lease: Holds all their blocks.
        tokens: The tokens.
        spec: What a prefix of the model consists of.
        source: Copies the KV that is missing.
        passing: Whether it is only for the time being, and at the end of a block (`Resume.PASSING`).
    """
    tail = pack(tokens[lease.tokens :])
    if tail and not passing:
        _store_tail(room, lease, tail, spec, source)
    elif not spec.resumes_anywhere:
        _complete_block(room, lease, spec, source, passing=passing)


def _store_tail(room: Room, lease: PrefixLease, key: bytes, spec: PrefixSpec, source: KVSource) -> None:
    """
    Store the tail behind a leased path, complete or not at all, and lease it.

    With full attention alone, a tail that a longer block or tail begins with is not needed, and does not stay.
    """
    parent = lease.nodes[-1]
    if spec.resumes_anywhere and any(child.key.startswith(key) for child in islice(parent.children(), MOST_CHILDREN)):
        return
    tail, tokens = parent.child(key), len(key) // TOKEN_BYTES
    end = parent.end + tokens
    if tail is not None:  # leased before room is made, which would evict a tail that lost its checkpoint
        room.evictor.trie.insert(lease, [key], tail.extents)
    nbytes = spec.tail_bytes(tokens, end) if tail is None else spec.state_bytes
    complete = tail is not None and spec.resumes_at(tail)
    if not complete and not room.make_room(1, nbytes, new_blocks=tail is None):
        return
    checkpoint = source.checkpoint(end) if spec.state_bytes and not complete else None
    if spec.state_bytes and not complete and checkpoint is None:
        return
    starts = (parent.end if group.window is None else end - group.seen(end) for group in spec.groups)
    if tail is None:
        extents = tuple(source.tail(index, first, end) for index, first in enumerate(starts))
        room.evictor.trie.insert(lease, [key], extents)
    if checkpoint is not None:
        room.evictor.trie.attach(lease, checkpoint)
    if spec.windowed:
        _thin_windows(room.evictor.trie, lease, spec, None)


def drop_covered(trie: PrefixTrie, parent: Node, child: Node) -> int:
    """Drop the tails behind a block that another node behind it begins with, and return how many there were."""
    covered = [tail for tail in tails_along(parent, child.key) if tail is not child and not tail.kept]
    trie.detach(covered)
    return len(covered)


def _complete_block(room: Room, lease: PrefixLease, spec: PrefixSpec, source: KVSource, *, passing: bool) -> None:
    """Store the windows and the recurrent states that a request needs to go on after a leased path of blocks."""
    for index, group in enumerate(spec.groups):
        if group.window is not None and not _fill_window(room, lease, index, group, source):
            return
    if spec.state_bytes and lease.checkpoint is None:
        fits = room.make_room(1, spec.state_bytes, new_blocks=False)
        checkpoint = source.checkpoint(lease.tokens) if fits else None
        if checkpoint is not None:
            room.evictor.trie.attach(lease, checkpoint)
    if spec.windowed and not passing:
        end = lease.nodes[-1]
        end.resumable = True
        _thin_windows(room.evictor.trie, lease, spec, end.depth)


def _fill_window(room: Room, lease: PrefixLease, index: int, group: LayerGroup, source: KVSource) -> bool:
    """Store the blocks that a window sees at the end of a leased path, and tell whether all of them are stored."""
    visible = lease.nodes[len(lease.nodes) - group.visible(len(lease.nodes)) :]
    for first, last in _stretches([node for node in visible if node.extents[index] is None]):
        if room.make_room(last - first, group.block_bytes, new_blocks=False) < last - first:
            return False
        room.evictor.trie.fill(lease, index, packed(source, index, first, last))
    return True


def _thin_windows(trie: PrefixTrie, lease: PrefixLease, spec: PrefixSpec, end: int | None) -> None:
    """
    Drop windows that were stored only in passing, on the way to a resume point.

    They go back to the previous resume point, to a fork, or to the end of another lease: there another prompt may need
    them.

    Args:
        trie: Holds them.
        lease: Holds the path to the resume point, its last node.
        spec: What a prefix of the model consists of.
        end: Blocks before the resume point, which needs some of the windows on the way; None if it needs none.
    """
    way, held = lease.nodes[:-1], trie.ends_of_others(lease)
    passed: list[Node] = []
    own = 0 if end is None else 1  # of the blocks behind a node, this many are on the way
    for node in reversed(way):
        if node.resumable or node in held or node.degree - node.tails > own:
            break
        passed.append(node)
        own = 1
    for index, group in enumerate(spec.groups):
        if group.window is not None:
            last = len(way) if end is None else end - group.visible(end)
            trie.thin([node for node in passed if node.depth <= last], index)


def _stretches(nodes: Sequence[Node]) -> Iterator[tuple[int, int]]:
    """Yield the first block, and one past the last, of each stretch of consecutive nodes, an extent long at most."""
    first = 0
    for position in range(1, len(nodes) + 1):
        full = position - first == EXTENT_BLOCKS
        if position == len(nodes) or full or nodes[position].depth != nodes[position - 1].depth + 1:
            yield nodes[first].depth - 1, nodes[position - 1].depth
            first = position
