"""Random stores, leases and keeps: a kept prefix is lost only for the reasons that the prefix cache gives."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.kv.keeps import Keep
from daemon.kv.keys import BLOCK_TOKENS, pack
from daemon.kv.lease import PrefixLease
from daemon.kv.nodes import Node
from daemon.kv.spec import PrefixSpec, Resume
from tests.support.builders import Clock
from tests.unit.kv.fake_kv import BLOCK_BYTES, LAYOUTS, FakeKV, FakePrefixes
from tests.unit.kv.random_prompts import PROMPTS, floor_to_block


class KeepMachine(RuleBasedStateMachine):
    """
    Random stores, leases, keeps, evictions and invalidations.

    A kept prefix is lost only if its time is over, the share is exceeded, it was invalidated, or all else was evicted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.prefixes = FakePrefixes()
        self.leases: list[PrefixLease] = []
        self.kept: dict[Keep, list[int]] = {}

    @initialize(parts=st.sampled_from(LAYOUTS), blocks=st.integers(4, 14), room=st.integers(4, 14) | st.just(1000))
    def start(self, parts: PrefixSpec, blocks: int, room: int) -> None:
        """Choose the layout and the limits."""
        self.prefixes = FakePrefixes(blocks, room * BLOCK_BYTES, parts=parts, clock=self.clock)

    @rule(tokens=PROMPTS, resume=st.sampled_from(Resume), boundary=st.booleans())
    def store(self, tokens: list[int], resume: Resume, boundary: bool) -> None:
        """Store a prompt, which may evict others."""
        self.prefixes.store("n", tokens, resume, FakeKV(tokens, boundary=floor_to_block(len(tokens)) * boundary))
        self.lost_only_if_nothing_else_was_left()

    @rule(tokens=PROMPTS, seconds=st.integers(1, 50), stored=st.booleans())
    def keep(self, tokens: list[int], seconds: int, stored: bool) -> None:
        """Keep the stored part of a prompt; another keep may yield."""
        if stored:
            self.prefixes.store("n", tokens, Resume.YES, FakeKV(tokens, boundary=floor_to_block(len(tokens))))
            self.lost_only_if_nothing_else_was_left()
        before = {keep.end: keep.expires for keep in self.prefixes.cache.keeps}
        done = self.prefixes.cache.keep("n", tokens, self.prefixes.parts, seconds)
        after = {keep.end: keep for keep in self.prefixes.cache.keeps}
        lost = [expires for end, expires in before.items() if end not in after and expires > self.clock.now]
        assert all(expires <= keep.expires for expires in lost for keep in after.values()), "another one was due first"
        if done:
            # The last token of a prompt is always computed, so that its keep ends before it.
            known = [keep for keep in after.values() if tokens[:-1][: keep.tokens] == self.tokens(keep)]
            longest = max(known, key=lambda keep: keep.tokens)
            assert self.prefixes.cache.keeps.expires_in(longest) >= seconds
            assert longest.tokens >= floor_to_block(len(self.prefixes.reuse("n", tokens)))
        self.take_stock()

    @rule(tokens=PROMPTS)
    def lease(self, tokens: list[int]) -> None:
        """Hold a stored prefix."""
        self.leases.append(self.prefixes.lookup("n", tokens))

    @precondition(lambda self: self.leases)
    @rule()
    def release(self) -> None:
        """End a lease."""
        self.leases.pop().release()

    @rule(blocks=st.integers(1, 5))
    def shed(self, blocks: int) -> None:
        """Evict under memory pressure."""
        self.prefixes.cache.shed(blocks * BLOCK_BYTES)
        self.lost_only_if_nothing_else_was_left()

    @rule(blocks=st.integers(0, 14))
    def limit(self, blocks: int) -> None:
        """Change the limit while it runs, also below what is kept."""
        self.prefixes.cache.limit(blocks * BLOCK_BYTES)
        self.lost_only_if_nothing_else_was_left()

    @rule(tokens=PROMPTS)
    def forget(self, tokens: list[int]) -> None:
        """Invalidate a prefix, kept or not."""
        self.prefixes.cache.forget_prefix("n", tokens)
        assert len(self.prefixes.reuse("n", [*tokens, 7])) < max(1, len(tokens))
        self.take_stock()

    @rule(seconds=st.integers(1, 30))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.clock.pass_(seconds)

    def lost_only_if_nothing_else_was_left(self) -> None:
        """Compare with the keeps before an eviction."""
        lost = [keep for keep in self.kept if keep not in set(self.prefixes.cache.keeps)]
        if any(keep.expires > self.clock.now for keep in lost):
            left = self.prefixes.cache.trie.subtree(self.prefixes.cache.trie.tops(lambda _: True))
            early = [keep for keep in lost if keep.expires > self.clock.now]
            assert all(self.excused(node, early) for node in left), "something else could have been evicted"
        self.take_stock()

    def excused(self, node: Node, early: list[Keep]) -> bool:
        """Whether a block could not be evicted before a keep ended: it was held, or is stored since."""
        held = bool(node.locks or node.kept) or any(below.locks or below.kept for below in node.children())
        latest = max(keep.end.tick for keep in early)
        return held or node.tick >= latest or any(node in self.path(keep) for keep in early)

    def path(self, keep: Keep) -> list[Node]:
        """Return what is left of the path of a keep that has ended. An evicted block does not know its parent."""
        tokens = self.kept[keep]
        keys = [pack(tokens[start : start + BLOCK_TOKENS]) for start in range(0, len(tokens), BLOCK_TOKENS)]
        return self.prefixes.cache.trie.walk("n", keys)

    def take_stock(self) -> None:
        """Remember what is kept."""
        self.kept = {keep: self.tokens(keep) for keep in self.prefixes.cache.keeps}

    def tokens(self, keep: Keep) -> list[int]:
        """Return the tokens of a kept prefix."""
        return [token for node in reversed(list(keep.path())) for token in memoryview(node.key).cast("I")]

    @invariant()
    def is_sound(self) -> None:
        """Recount, and restore each kept prefix."""
        self.prefixes.cache.check_integrity()
        for keep, tokens in self.kept.items():
            assert keep in set(self.prefixes.cache.keeps)
            assert self.prefixes.reuse("n", [*tokens, 99])[: len(tokens)] == tokens

    def teardown(self) -> None:
        """Nothing leaks."""
        for lease in self.leases:
            lease.release()
        self.prefixes.cache.clear()
        self.prefixes.cache.check_integrity()
        assert self.prefixes.cache.memory_usage() == 0
        assert not self.prefixes.cache.keeps


KeepMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, print_blob=True)
TestKeepMachine = KeepMachine.TestCase
