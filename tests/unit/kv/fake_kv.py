"""Fake KV whose bytes are the tokens that they stand for: KV restored wrongly shows as wrong tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from daemon.kv.evictor import PrefixLimits
from daemon.kv.extent_ledger import Run
from daemon.kv.keys import BLOCK_TOKENS
from daemon.kv.lease import PrefixLease
from daemon.kv.nodes import Checkpoint, Extent
from daemon.kv.prefix_cache import PrefixCache
from daemon.kv.spec import LayerGroup, NotHeldError, PrefixSpec, Resume

GROUP_BLOCK_BYTES = 50
STATE_BYTES = 120
PLAIN = PrefixSpec((LayerGroup(GROUP_BLOCK_BYTES), LayerGroup(GROUP_BLOCK_BYTES)))
WINDOWED = PrefixSpec((LayerGroup(GROUP_BLOCK_BYTES), LayerGroup(GROUP_BLOCK_BYTES, window=24)))
"""Its window sees two blocks."""
HYBRID = PrefixSpec((LayerGroup(GROUP_BLOCK_BYTES),), STATE_BYTES)
RECURRENT = PrefixSpec((), STATE_BYTES)
ALL = PrefixSpec((LayerGroup(GROUP_BLOCK_BYTES), LayerGroup(GROUP_BLOCK_BYTES, window=40)), STATE_BYTES)
LAYOUTS = (PLAIN, WINDOWED, HYBRID, RECURRENT, ALL)
"""One of each kind: full attention, with a window, with recurrent layers, without attention, and with all of them."""
BLOCK_BYTES = PLAIN.block_bytes


class FakeKV:
    """
    The KV of a request that has computed some tokens, as a source.

    Args:
        tokens: Those.
        window: How many of them layers with a window still hold; None for all.
        boundary: Tokens whose recurrent state it kept, beside the present one.
    """

    def __init__(self, tokens: Sequence[int], window: int | None = None, boundary: int | None = None) -> None:
        self._tokens = tokens
        self._window = window
        self._boundary = boundary
        self.packed: list[tuple[int, int, int]] = []

    def pack(self, group: int, start: int, stop: int) -> Extent:
        """Copy blocks, labelled with their group."""
        first, last = start * BLOCK_TOKENS, stop * BLOCK_TOKENS
        oldest = len(self._tokens) - self._window if group and self._window is not None else 0
        if last > len(self._tokens) or first < oldest:
            raise NotHeldError(f"blocks {start} to {stop} are not held")
        self.packed.append((group, start, stop))
        blocks = stop - start
        return Extent((group, tuple(self._tokens[first:last])), blocks * GROUP_BLOCK_BYTES, 1, start, blocks)

    def tail(self, group: int, first: int, last: int) -> Extent:
        """Copy tokens that end inside a block, labelled with their group."""
        oldest = len(self._tokens) - self._window if group and self._window is not None else 0
        if last > len(self._tokens) or first < oldest:
            raise NotHeldError(f"tokens {first} to {last} are not held")
        nbytes = (last - first) * GROUP_BLOCK_BYTES // BLOCK_TOKENS
        return Extent((group, tuple(self._tokens[first:last])), nbytes, 1, last // BLOCK_TOKENS, 1)

    def checkpoint(self, tokens: int) -> Checkpoint | None:
        """Return a state that says which tokens it sums up."""
        held = tokens in (len(self._tokens), self._boundary)
        return Checkpoint(tuple(self._tokens[:tokens]), STATE_BYTES, 1) if held else None


class FakePrefixes:
    """
    A prefix cache over fake KV.

    Attributes:
        packed: Ranges of blocks that were copied out of live caches for the first layer group.
    """

    def __init__(
        self,
        blocks: int = 1000,
        nbytes: int = 1_000_000,
        buffers: int = 1000,
        min_prefix_len: int = 16,
        parts: PrefixSpec = PLAIN,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.cache = PrefixCache(PrefixLimits(blocks, nbytes, buffers), min_prefix_len, copy=fake_copy, clock=clock)
        self.parts = parts
        self.packed: list[tuple[int, int]] = []

    def store(
        self,
        namespace: str,
        tokens: Sequence[int],
        resume: Resume = Resume.YES,
        source: FakeKV | None = None,
        *,
        kept: bool = False,
    ) -> int:
        """Store what a live cache holds after these tokens."""
        live = source or FakeKV(tokens, boundary=len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS)
        try:
            return self.cache.store(namespace, tokens, self.parts, live, resume=resume, kept=kept)
        finally:
            self.packed += [(start, stop) for group, start, stop in live.packed if group == 0]

    def lookup(self, namespace: str, tokens: Sequence[int]) -> PrefixLease:
        """Lease the stored prefix of a prompt."""
        return self.cache.lookup(namespace, tokens, self.parts)

    def reuse(self, namespace: str, tokens: Sequence[int]) -> list[int]:
        """Look a prompt up, restore it, release it, and return the tokens whose KV came back."""
        with self.lookup(namespace, tokens) as lease:
            return self.restore(lease)

    def restore(self, lease: PrefixLease) -> list[int]:
        """Check that every part of a match is stored and belongs to its tokens, and return these tokens."""
        path = [token for node in lease.nodes for token in memoryview(node.key).cast("I")][: lease.tokens]
        if not path:
            return []
        for index, (group, runs) in enumerate(zip(self.parts.groups, self.cache.runs(lease, self.parts), strict=True)):
            restored = _tokens(runs, index)
            assert len(restored) >= group.seen(len(path)), "a layer group lacks tokens"
            assert restored == path[-len(restored) :], "a layer group restores other tokens"
        if self.parts.state_bytes:
            assert lease.checkpoint is not None
            assert lease.checkpoint.payload == tuple(path), "a checkpoint sums up other tokens"
        self.cache.restored(lease)
        return path


def fake_copy(extent: Extent, first: int, last: int) -> Extent:
    """Copy blocks of an extent into a new extent."""
    group, tokens = cast("tuple[int, tuple[int, ...]]", extent.payload)
    blocks = last - first
    payload = (group, tokens[first * BLOCK_TOKENS : last * BLOCK_TOKENS])
    return Extent(payload, blocks * GROUP_BLOCK_BYTES, 1, extent.start + first, blocks)


def prompt(*blocks: int, tail: int = 0) -> list[int]:
    """Return a prompt of full blocks, each of one letter, and a tail of tokens that belong to no full block."""
    return [letter * 1000 + i for letter in blocks for i in range(BLOCK_TOKENS)] + [7] * tail


def _tokens(runs: Sequence[Run], group: int) -> list[int]:
    tokens: list[int] = []
    for payload, start, stop in runs:
        label, copied = cast("tuple[int, tuple[int, ...]]", payload)
        assert label == group, "a run belongs to another layer group"
        tokens.extend(copied[start:stop])
    return tokens
