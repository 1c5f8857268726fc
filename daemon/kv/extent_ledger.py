"""The count of stored bytes and buffers, and of the blocks that use each extent; the ranges of a match in extents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, filterfalse
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.nodes import Checkpoint, Extent

if TYPE_CHECKING:
    from daemon.kv.nodes import Node


EXTENT_BLOCKS = 64
"""Most blocks of an extent. A buffer for each block and layer would exceed Metal's limit of 499,000 buffers."""

_EXTENTS, _NBYTES, _LOCKS = attrgetter("extents"), attrgetter("nbytes"), attrgetter("locks")
_CHECKPOINT = attrgetter("checkpoint")


class Run(NamedTuple):
    """Consecutive tokens `start` to `stop` (exclusive, positions in the extent) of one extent."""

    payload: object
    start: int
    stop: int


@dataclass(slots=True)
class ExtentLedger:
    """
    Counts what extents and checkpoints hold; the only place where their bytes are added and subtracted.

    Attributes:
        nbytes: Bytes of all extents with a block in use, and of all checkpoints.
        buffers: Device buffers of the same extents and checkpoints.
        checkpoints: Checkpoints that are stored.
        checkpoint_bytes: Their bytes.
        reclaimable: Estimate of the bytes that compaction would free.
        sparse: Extents that are worth compacting.
        partition_bytes: Bytes of each partition that has any.
        leased_bytes: Bytes that leases hold: extents as a whole if they hold one block of them, and the checkpoints of
            all blocks that they hold.
    """

    nbytes: int = 0
    buffers: int = 0
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    reclaimable: int = 0
    sparse: set[Extent] = field(default_factory=set)
    partition_bytes: Counter[str] = field(default_factory=Counter)
    leased_bytes: int = 0
    _leased: Counter[Extent] = field(default_factory=Counter)
    """How many blocks of an extent leases hold."""

    def take(self, extent: Extent, node: Node) -> None:
        """Count a node as a user of the extent's block at its depth."""
        if not extent.users:
            extent.users = [None] * extent.blocks
        if extent.live == 0:
            extent.partition = node.partition
            self._add(extent, 1)
        self._change_use(extent, node, node)
        if node.locks:
            self._hold(Counter([extent]))

    def drop(self, extent: Extent, node: Node) -> None:
        """Remove a node from the users of an extent; with the last user the payload is freed."""
        self._change_use(extent, node, None)
        if node.locks:
            self._give_back(Counter([extent]))
        if extent.live == 0:
            self._add(extent, -1)
            extent.payload = None

    def locking(self, nodes: Sequence[Node]) -> None:
        """Count what nodes have that a lease is about to lock, as far as no other one holds them."""
        self._hold(_blocks(filterfalse(_LOCKS, nodes)))
        self.leased_bytes += _checkpoint_bytes(filterfalse(_LOCKS, nodes))

    def unlocked(self, nodes: Sequence[Node]) -> None:
        """Count what nodes have that a lease has unlocked, as far as no other one holds them."""
        self._give_back(_blocks(filterfalse(_LOCKS, nodes)))
        self.leased_bytes -= _checkpoint_bytes(filterfalse(_LOCKS, nodes))

    def keep(self, checkpoint: Checkpoint, node: Node) -> None:
        """Count a checkpoint, and attach it to its node."""
        checkpoint.node, checkpoint.partition = node, node.partition
        self.checkpoints += 1
        self.checkpoint_bytes += checkpoint.nbytes
        self.leased_bytes += checkpoint.nbytes if node.locks else 0
        self._add(checkpoint, 1)

    def lose(self, checkpoint: Checkpoint) -> None:
        """Stop counting a checkpoint that its node gave up, and free its payload."""
        assert checkpoint.node is not None, "a checkpoint is lost twice"
        self.leased_bytes -= checkpoint.nbytes if checkpoint.node.locks else 0
        checkpoint.node = None
        self.checkpoints -= 1
        self.checkpoint_bytes -= checkpoint.nbytes
        self._add(checkpoint, -1)
        checkpoint.payload = None

    def check(self, nodes: Sequence[Node]) -> None:
        """
        Compare with a recount of what nodes use.

        Raises:
            AssertionError: If they disagree with the ledger or with what the extents say.
        """
        uses: Counter[Extent] = Counter()
        checkpoints = []
        for node in nodes:
            for extent in node.extents:
                if extent is not None:
                    assert extent.users[node.depth - 1 - extent.start] is node, "a block is not where its extent has it"
                    uses[extent] += 1
            if node.checkpoint is not None:
                assert node.checkpoint.node is node, "a checkpoint belongs to another node"
                checkpoints.append(node.checkpoint)
        for extent, count in uses.items():
            assert extent.live == count, f"extent counts {extent.live} blocks, {count} use it"
            assert extent.live == extent.blocks - extent.users.count(None), "an extent has a forgotten user"
        leased = _blocks(filter(_LOCKS, nodes))
        assert self._leased == leased, "leased blocks drifted"
        leased_bytes = sum(map(_NBYTES, leased)) + _checkpoint_bytes(filter(_LOCKS, nodes))
        assert self.leased_bytes == leased_bytes, "leased bytes drifted"
        held: list[Extent | Checkpoint] = [*uses, *checkpoints]
        assert all(each.payload is not None for each in held), "what is in use has no payload"
        partition_bytes: Counter[str] = Counter()
        for each in held:
            partition_bytes[each.partition] += each.nbytes
        assert self.nbytes == sum(each.nbytes for each in held), "bytes drifted"
        assert self.buffers == sum(each.buffers for each in held), "buffers drifted"
        assert self.checkpoints == len(checkpoints), "checkpoints drifted"
        assert self.checkpoint_bytes == sum(each.nbytes for each in checkpoints), "bytes of checkpoints drifted"
        assert self.partition_bytes == partition_bytes, "shares drifted"
        assert self.sparse == {extent for extent in uses if extent.sparse}, "sparse extents drifted"
        assert self.reclaimable == sum(extent.reclaimable for extent in uses), "reclaimable bytes drifted"

    def _change_use(self, extent: Extent, node: Node, user: Node | None) -> None:
        """Note the user of the block of `node` in an extent, and with it how much compaction would free."""
        self.reclaimable -= extent.reclaimable
        position = node.depth - 1 - extent.start
        assert (extent.users[position] is None) == (user is not None), "a block is used twice or freed twice"
        extent.users[position] = user
        extent.live += 1 if user is not None else -1
        self.reclaimable += extent.reclaimable
        if extent.sparse:
            self.sparse.add(extent)
        else:
            self.sparse.discard(extent)

    def _hold(self, blocks: Counter[Extent]) -> None:
        self.leased_bytes += sum(map(_NBYTES, blocks.keys() - self._leased.keys()))
        self._leased.update(blocks)

    def _give_back(self, blocks: Counter[Extent]) -> None:
        self._leased.subtract(blocks)
        for extent in filterfalse(self._leased.get, blocks):
            self.leased_bytes -= extent.nbytes
            del self._leased[extent]

    def _add(self, held: Extent | Checkpoint, sign: int) -> None:
        self.nbytes += sign * held.nbytes
        self.buffers += sign * held.buffers
        self.partition_bytes[held.partition] += sign * held.nbytes
        if not self.partition_bytes[held.partition]:
            del self.partition_bytes[held.partition]


def runs(nodes: Sequence[Node], group: int) -> list[Run]:
    """
    Return where the KV of consecutive nodes lies for one layer group: as few runs as possible, in order.

    Raises:
        ValueError: If a block has no KV of that group.
    """
    joined: list[Run] = []
    last: Extent | None = None
    for node in nodes:
        extent = node.extents[group]
        if extent is None:
            raise ValueError(f"block {node.depth} has no KV of layer group {group}")
        start = (node.depth - 1 - extent.start) * BLOCK_TOKENS
        if extent is last:
            joined[-1] = joined[-1]._replace(stop=start + node.tokens)
        else:
            joined.append(Run(extent.payload, start, start + node.tokens))
        last = extent
    return joined


def _blocks(nodes: Iterable[Node]) -> Counter[Extent]:
    """Return the extents of nodes, and how many of their blocks these are. Thousands of blocks take no Python each."""
    return Counter(filter(None, chain.from_iterable(map(_EXTENTS, nodes))))


def _checkpoint_bytes(nodes: Iterable[Node]) -> int:
    """Return the bytes of the checkpoints of nodes."""
    return sum(map(_NBYTES, filter(None, map(_CHECKPOINT, nodes))))
