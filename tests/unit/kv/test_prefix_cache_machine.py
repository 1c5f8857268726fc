"""In any order of calls, the prefix cache restores the right tokens, keeps its limits and leaks nothing."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from daemon.kv.keys import BLOCK_TOKENS, block_keys, pack
from daemon.kv.lease import PrefixLease
from daemon.kv.nodes import Node
from daemon.kv.place import tails_along
from daemon.kv.spec import NotHeldError, Resume
from tests.unit.kv.fake_kv import BLOCK_BYTES, LAYOUTS, FakeKV, FakePrefixes
from tests.unit.kv.random_prompts import PROMPTS, floor_to_block

NAMESPACES = st.sampled_from(["n/one", "n/two", "m/one"])


class PrefixCacheMachine(RuleBasedStateMachine):
    """Random calls, compared with a list of all prompts that were stored and not forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.prefixes = FakePrefixes()
        self.least = 16
        self.stored: list[tuple[str, list[int]]] = []
        self.resumable: list[tuple[str, list[int]]] = []
        self.leases: list[tuple[PrefixLease, list[int]]] = []

    @initialize(
        parts=st.sampled_from(LAYOUTS),
        limits=st.just((1000, 1000, 1000))
        | st.tuples(st.integers(0, 12) | st.just(1000), *[st.integers(1, 12) | st.just(1000)] * 2),
        least=st.sampled_from([16, 20, 32]),
        first=st.lists(PROMPTS, max_size=5),
    )
    def start(self, parts: object, limits: tuple[int, int, int], least: int, first: list[list[int]]) -> None:
        """Choose the layout, the limits and the first prompts: hypothesis leaves rules out at random."""
        blocks, room, buffers = limits
        self.prefixes = FakePrefixes(blocks, room * BLOCK_BYTES, buffers, least, parts)  # type: ignore[arg-type]
        self.least = least
        for tokens in first:
            self.store("n/one", tokens, Resume.YES, None)

    def longest(self, namespace: str, tokens: list[int], known: list[tuple[str, list[int]]]) -> int:
        """Return the longest beginning of a prompt, in tokens, that was stored in its namespace."""
        return max((_common(tokens[:-1], each) for name, each in known if name == namespace), default=0)

    def covered(self, namespace: str, tokens: list[int]) -> list[Node]:
        """Return the tails that the first block or tail of a prompt begins with that is not stored."""
        path = self.prefixes.cache.trie.walk(namespace, block_keys(tokens))
        behind = tokens[len(path) * BLOCK_TOKENS :][:BLOCK_TOKENS]
        return list(tails_along(path[-1], pack(behind))) if path and behind else []

    @property
    def nothing_was_lost(self) -> bool:
        """Whether no limit was ever reached."""
        limits = self.prefixes.cache.limits
        return min(limits.blocks, limits.nbytes // BLOCK_BYTES, limits.buffers) == 1000

    @rule(namespace=NAMESPACES, tokens=PROMPTS, resume=st.sampled_from(Resume), window=st.sampled_from([None, 40, 56]))
    def store(self, namespace: str, tokens: list[int], resume: Resume, window: int | None) -> None:
        """Store a prompt; only blocks that no lookup would find are packed, each once."""
        boundary = floor_to_block(len(tokens))
        source = FakeKV(tokens, window, boundary)
        before = self.prefixes.cache.trie.blocks + self.prefixes.cache.counters.evictions
        covered = self.covered(namespace, tokens)
        try:
            count = self.prefixes.store(namespace, tokens, resume, source)
        except NotHeldError:
            assert window is not None
            return
        finally:
            self.stored.append((namespace, tokens if resume is Resume.YES else tokens[:boundary]))
        assert len(source.packed) == len(set(source.packed))
        dropped = sum(tail.detached for tail in covered)  # those that were evicted are not
        assert count == self.prefixes.cache.trie.blocks + self.prefixes.cache.counters.evictions + dropped - before
        if resume is Resume.YES and boundary >= self.least and self.nothing_was_lost:
            self.resumable.append((namespace, tokens))

    @rule(namespace=NAMESPACES, tokens=PROMPTS)
    def lookup(self, namespace: str, tokens: list[int]) -> None:
        """Look a prompt up and restore it; the lease is kept."""
        lease = self.prefixes.lookup(namespace, tokens)
        restored = self.prefixes.restore(lease)
        assert restored == tokens[: len(restored)]
        assert len(restored) <= self.longest(namespace, tokens, self.stored)
        assert len(restored) < max(1, len(tokens))
        for name, known in self.resumable:
            common = _common(tokens[:-1], known)
            if name == namespace and common >= (self.least if self.prefixes.parts.resumes_anywhere else len(known)):
                assert len(restored) >= common
        self.leases.append((lease, restored))

    @precondition(lambda self: self.resumable)
    @rule(data=st.data(), resume=st.sampled_from(Resume))
    def store_beginning(self, data: st.DataObject, resume: Resume) -> None:
        """Store a beginning of a prompt that is stored with its end: each stays resumable."""
        namespace, known = self.resumable[data.draw(st.integers(0, len(self.resumable) - 1))]
        self.store(namespace, known[: data.draw(st.integers(1, len(known)))], resume, None)

    @precondition(lambda self: self.resumable)
    @rule(data=st.data(), more=st.integers(1, 20))
    def go_on(self, data: st.DataObject, more: int) -> None:
        """Look up the next turn of a prompt that is stored with its end."""
        namespace, known = self.resumable[data.draw(st.integers(0, len(self.resumable) - 1))]
        self.lookup(namespace, [*known, *[8] * more])

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """End a lease; until now it restores the same tokens."""
        lease, restored = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        assert self.prefixes.restore(lease) == restored
        lease.release()

    @precondition(lambda self: not self.nothing_was_lost)
    @rule(blocks=st.integers(0, 5))
    def shed(self, blocks: int) -> None:
        """Evict under memory pressure."""
        cache = self.prefixes.cache
        before, evictable = cache.memory_usage(), cache.evictable_bytes()
        freed = cache.shed(blocks * BLOCK_BYTES)
        assert cache.memory_usage() == before - freed
        assert freed >= min(blocks * BLOCK_BYTES, evictable), "what was said to be evictable is not"
        assert freed >= blocks * BLOCK_BYTES or self.leases or not cache.memory_usage()
        if blocks:
            self.resumable.clear()

    @rule(namespace=NAMESPACES, tokens=PROMPTS, dry_run=st.booleans())
    def forget_prefix(self, namespace: str, tokens: list[int], dry_run: bool) -> None:
        """Forget all prompts that begin with some tokens; a dry run returns the same result."""
        cache = self.prefixes.cache
        before = cache.memory_usage()
        expected = cache.forget_prefix(namespace, tokens, dry_run=True)
        if dry_run:
            return
        assert cache.forget_prefix(namespace, tokens) == expected
        assert cache.memory_usage() == before - expected.bytes_freed
        if floor_to_block(len(tokens)):
            assert len(self.prefixes.reuse(namespace, [*tokens, 7])) < max(1, len(tokens))
        self.resumable = [
            (name, known)
            for name, known in self.resumable
            if name != namespace or (tokens and not _common(known, tokens))
        ]

    @rule(namespace=NAMESPACES)
    def clear(self, namespace: str) -> None:
        """Forget a namespace."""
        cache = self.prefixes.cache
        expected = cache.clear(namespace.__eq__, dry_run=True)
        assert cache.clear(namespace.__eq__) == expected
        self.stored = [(name, tokens) for name, tokens in self.stored if name != namespace]
        self.resumable = [(name, tokens) for name, tokens in self.resumable if name != namespace]

    @invariant()
    def is_sound(self) -> None:
        """Recount, and compare with the limits."""
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
    """Return the number of tokens that two prompts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


PrefixCacheMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, print_blob=True, derandomize=False
)
TestPrefixCacheMachine = PrefixCacheMachine.TestCase


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(20))
def test_prefix_cache_matches_its_model_at_random(batch: int) -> None:
    """In batches, because hypothesis keeps all examples that it has tried in memory."""
    run_state_machine_as_test(
        PrefixCacheMachine,
        settings=settings(max_examples=500, stateful_step_count=100, deadline=None, print_blob=True, database=None),
    )
