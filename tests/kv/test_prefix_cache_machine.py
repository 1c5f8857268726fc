"""Whatever the order of calls, the prefix cache restores the right tokens, keeps to its budgets and leaks nothing."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.kv.block import BLOCK_TOKENS
from daemon.kv.trie import Lease
from tests.kv.fake_kv import BLOCK_BYTES, GROUPS, FakePrefixes, prompt

NAMESPACES = st.sampled_from(["n", "m"])
PROMPTS = st.tuples(st.lists(st.integers(1, 2), max_size=6), st.integers(0, 15)).map(
    lambda drawn: prompt(*drawn[0], tail=drawn[1])
)


class PrefixCacheMachine(RuleBasedStateMachine):
    """Random calls against a list of all that was ever stored and not forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.prefixes = FakePrefixes()
        self.least = 16
        self.stored: list[tuple[str, list[int]]] = []
        self.leases: list[tuple[Lease, list[int]]] = []

    @initialize(
        blocks=st.integers(0, 12),
        room=st.integers(1, 12),
        buffers=st.integers(1, 12),
        least=st.sampled_from([16, 20, 32]),
    )
    def start(self, blocks: int, room: int, buffers: int, least: int) -> None:
        """Choose the limits."""
        self.prefixes = FakePrefixes(blocks, room * BLOCK_BYTES, buffers, least)
        self.least = least

    def longest(self, namespace: str, tokens: list[int]) -> int:
        """Return the tokens that a cache which never evicts would reuse."""
        return max((_common(tokens[:-1], known) for name, known in self.stored if name == namespace), default=0)

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def store(self, namespace: str, tokens: list[int]) -> None:
        """Store a prompt; only blocks that no lookup would find are packed."""
        self.prefixes.packed.clear()
        count = self.prefixes.store(namespace, tokens)
        packed = self.prefixes.packed
        assert count == sum(stop - start for start, stop in packed)
        assert all(earlier[1] == later[0] for earlier, later in pairwise(packed))
        self.stored.append((namespace, tokens[: floor_to_block(len(tokens))]))

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def lookup(self, namespace: str, tokens: list[int]) -> None:
        """Look a prompt up and restore it; the lease is kept."""
        lease = self.prefixes.cache.lookup(namespace, tokens)
        restored = self.prefixes.restore(lease)
        assert restored == tokens[: len(restored)]
        assert len(restored) <= self.longest(namespace, tokens)
        assert len(restored) < max(1, len(tokens))
        self.leases.append((lease, restored))

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def store_then_lookup(self, namespace: str, tokens: list[int]) -> None:
        """What was stored from its first block to its last comes back, unless the budget of buffers forbids it."""
        self.store(namespace, tokens)
        packed = self.prefixes.packed
        restored = self.prefixes.reuse(namespace, [*tokens, 7])
        enough_buffers = self.prefixes.cache.limits.buffers >= GROUPS * (len(packed) + len(self.stored))
        stored = packed[-1][1] * BLOCK_TOKENS if packed and packed[0][0] == 0 else 0
        if stored >= self.least and enough_buffers:
            assert restored == tokens[:stored]

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """End a lease; until now it restores the same tokens."""
        lease, restored = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        assert self.prefixes.restore(lease) == restored
        lease.release()

    @rule(blocks=st.integers(0, 5))
    def shed(self, blocks: int) -> None:
        """Be short of memory."""
        cache = self.prefixes.cache
        before = cache.memory_usage()
        freed = cache.shed(blocks * BLOCK_BYTES)
        assert cache.memory_usage() == before - freed
        assert freed >= blocks * BLOCK_BYTES or self.leases or not cache.trie.blocks

    @rule(namespace=NAMESPACES, tokens=PROMPTS, dry_run=st.booleans())
    def forget_prefix(self, namespace: str, tokens: list[int], dry_run: bool) -> None:
        """Forget all prompts that begin with some tokens; a dry run tells the same."""
        cache = self.prefixes.cache
        before = cache.memory_usage()
        expected = cache.forget_prefix(namespace, tokens, dry_run=True)
        if dry_run:
            return
        assert cache.forget_prefix(namespace, tokens) == expected
        assert cache.memory_usage() == before - expected.bytes_freed
        if floor_to_block(len(tokens)):
            assert len(self.prefixes.reuse(namespace, [*tokens, 7])) < max(1, len(tokens))

    @rule(namespace=NAMESPACES)
    def clear(self, namespace: str) -> None:
        """Forget a namespace."""
        cache = self.prefixes.cache
        expected = cache.clear(namespace.__eq__, dry_run=True)
        assert cache.clear(namespace.__eq__) == expected
        self.stored = [(name, tokens) for name, tokens in self.stored if name != namespace]

    @invariant()
    def is_sound(self) -> None:
        """Recount, and compare with the budgets."""
        self.prefixes.cache.check_integrity()

    def teardown(self) -> None:
        """Nothing leaks once all is released and cleared."""
        for lease, _ in self.leases:
            lease.release()
        self.prefixes.cache.clear()
        self.prefixes.cache.check_integrity()
        assert self.prefixes.cache.memory_usage() == 0
        assert self.prefixes.cache.trie.leases == 0


def _common(one: list[int], two: list[int]) -> int:
    """Return the tokens of the full blocks that two prompts begin with."""
    same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return floor_to_block(same)


PrefixCacheMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, print_blob=True, derandomize=False
)
TestPrefixCacheMachine = PrefixCacheMachine.TestCase


def floor_to_block(tokens: int) -> int:
    """Return the largest multiple of the block size that is not above `tokens`."""
    return tokens - tokens % BLOCK_TOKENS
