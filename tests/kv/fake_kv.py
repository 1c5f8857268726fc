"""KV whose bytes are the tokens that they stand for: what is restored wrongly shows as wrong tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.extents import Extent, Run
from daemon.kv.prefix_cache import Limits, PrefixCache
from daemon.kv.trie import Lease

GROUPS = 2
GROUP_BLOCK_BYTES = 50
BLOCK_BYTES = GROUPS * GROUP_BLOCK_BYTES


class FakePrefixes:
    """
    A prefix cache over fake KV with two layer groups.

    Attributes:
        packed: Block ranges that were copied out of live caches.
    """

    def __init__(
        self, blocks: int = 1000, nbytes: int = 1_000_000, buffers: int = 1000, min_prefix_len: int = 16
    ) -> None:
        self.cache = PrefixCache(Limits(blocks, nbytes, buffers), min_prefix_len)
        self.packed: list[tuple[int, int]] = []

    def store(self, namespace: str, tokens: Sequence[int]) -> int:
        """Store what a live cache holds after these tokens."""

        def pack(start: int, stop: int) -> list[Extent]:
            self.packed.append((start, stop))
            return fake_extents(tokens, start, stop)

        return self.cache.store(namespace, tokens, BLOCK_BYTES, pack)

    def reuse(self, namespace: str, tokens: Sequence[int]) -> list[int]:
        """Look a prompt up, restore it, release it, and return the tokens whose KV came back."""
        lease = self.cache.lookup(namespace, tokens)
        restored = self.restore(lease)
        lease.release()
        return restored

    def restore(self, lease: Lease) -> list[int]:
        """Return the tokens whose KV a lease restores, having checked that all layer groups agree."""
        groups = [_tokens(runs, group) for group, runs in enumerate(self.cache.runs(lease))]
        if not groups:
            return []
        assert groups == [groups[0]] * GROUPS, "layer groups restore different tokens"
        assert len(groups[0]) == lease.tokens, "a lease restores another number of tokens than it says"
        if groups[0]:
            self.cache.restored(lease)
        return groups[0]


def fake_extents(tokens: Sequence[int], start: int, stop: int) -> list[Extent]:
    """Return what packing blocks `start` to `stop` gives: one extent for each group, labelled with it."""
    blocks = stop - start
    copied = tuple(tokens[start * BLOCK_TOKENS : stop * BLOCK_TOKENS])
    return [Extent((group, copied), blocks * GROUP_BLOCK_BYTES, 1, blocks) for group in range(GROUPS)]


def prompt(*blocks: int, tail: int = 0) -> list[int]:
    """Return a prompt of full blocks, each of one letter, and a tail of tokens that belong to no full block."""
    return [letter * 1000 + i for letter in blocks for i in range(BLOCK_TOKENS)] + [7] * tail


def _tokens(runs: Sequence[Run], group: int) -> list[int]:
    tokens: list[int] = []
    for payload, start, stop in runs:
        label, copied = cast("tuple[int, tuple[int, ...]]", payload)
        assert label == group, "a run belongs to another layer group"
        tokens.extend(copied[start * BLOCK_TOKENS : stop * BLOCK_TOKENS])
    return tokens
