"""The reason of a miss, and its position, are those of a naive comparison with everything that was ever stored."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from daemon.kv.keys import BLOCK_TOKENS, Namespace, differing, partition_of
from daemon.kv.miss import Miss, MissReason
from daemon.kv.nodes import Node
from daemon.kv.spec import NotHeldError, PrefixSpec, Resume
from tests.unit.kv.fake_kv import ALL, BLOCK_BYTES, HYBRID, PLAIN, WINDOWED, FakeKV, FakePrefixes, prompt

PLACES = {
    "base": Namespace("w", "", "l", "").digest(),
    "adapter": Namespace("w", "a", "l", "").digest(),
    "salted": Namespace("w", "", "l", "s").digest(),
    "salted, other weights": Namespace("v", "", "l", "s").digest(),
    "another salt": Namespace("w", "", "l", "t").digest(),
}
UNSALTED = partition_of(PLACES["base"])
NAMESPACES = st.sampled_from([PLACES["base"], PLACES["base"], PLACES["salted"], *PLACES.values()])


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Return a prompt that shares blocks, and parts of blocks, with many others."""
    letters = draw(st.lists(st.integers(1, 2), max_size=4))
    first = draw(st.integers(0, 1))
    tokens = prompt(*[1] * first, *letters, tail=draw(st.integers(0, 15)))
    mutated = draw(st.booleans())
    if tokens and mutated:
        tokens[draw(st.integers(0, len(tokens) - 1))] = draw(st.integers(5, 6))
    return tokens


@dataclass
class Known:
    """A prompt that was stored: its tokens, when, and whether it was invalidated since."""

    namespace: str
    tokens: list[int]
    at: float
    invalidated: bool = False


class MissMachine(RuleBasedStateMachine):
    """Random stores, evictions, invalidations and lookups, beside a list of all prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.known: list[Known] = []

    @initialize(parts=st.sampled_from([PLAIN, WINDOWED, HYBRID, ALL]), blocks=st.integers(3, 12) | st.just(1000))
    def start(self, parts: PrefixSpec, blocks: int) -> None:
        """Choose the layout and the limit."""
        self.prefixes = FakePrefixes(blocks, parts=parts, clock=lambda: self.now)

    @rule(namespace=NAMESPACES, tokens=prompts(), resume=st.sampled_from(Resume), window=st.sampled_from([None, 40]))
    def store(self, namespace: str, tokens: list[int], resume: Resume, window: int | None) -> None:
        """Store a prompt; a part of it that was the end of the conversation so far is no longer one."""
        before = floor(longest(tokens, self.paths(namespace)))
        with suppress(NotHeldError):
            self.prefixes.store(namespace, tokens, resume, FakeKV(tokens, window, floor(len(tokens))))
        stored = floor(longest(tokens, self.paths(namespace)))
        if stored:
            self.note(namespace, tokens if stored == floor(len(tokens)) else tokens[:stored], before)

    def note(self, namespace: str, tokens: list[int], before: int) -> None:
        """Remember what is stored now."""
        self.known = [
            each
            for each in self.known
            if each.invalidated
            or each.namespace != namespace
            or floor(len(each.tokens)) != before
            or tokens[: len(each.tokens)] != each.tokens
        ]
        self.known.append(Known(namespace, tokens, self.now))

    @rule(blocks=st.integers(1, 4))
    def evict(self, blocks: int) -> None:
        """Evict under memory pressure; nothing is noted of it."""
        self.prefixes.cache.shed(blocks * BLOCK_BYTES)

    @rule(namespace=NAMESPACES, tokens=prompts(), dry_run=st.booleans())
    def forget_prefix(self, namespace: str, tokens: list[int], dry_run: bool) -> None:
        """Invalidate the prompts that begin with some tokens."""
        before = self.paths(namespace)
        self.prefixes.cache.forget_prefix(namespace, tokens, dry_run=dry_run)
        after = self.paths(namespace)
        removed = [path for path in before if path not in after]
        for each in self.known if not dry_run else ():
            begins = any(each.tokens[: len(path)] == path for path in [tokens, *removed])
            each.invalidated |= each.namespace == namespace and begins

    @rule(namespace=NAMESPACES)
    def clear(self, namespace: str) -> None:
        """Invalidate a namespace."""
        self.prefixes.cache.clear(namespace.__eq__)
        for each in self.known:
            each.invalidated |= each.namespace == namespace

    @rule(seconds=st.integers(1, 100))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.now += seconds

    @rule(namespace=NAMESPACES, tokens=prompts(), lead=st.integers(0, 2), data=st.data())
    def look_up(self, namespace: str, tokens: list[int], lead: int, data: st.DataObject) -> None:
        """Look up a prompt, which often begins as a known one; its miss is the one that the list explains."""
        known_before = data.draw(st.integers(0, 3)) > 0
        if self.known and known_before:
            known: int = data.draw(st.integers(0, len(self.known) - 1))
            beginning = self.known[known].tokens
            tokens = [*beginning[: data.draw(st.integers(0, len(beginning)))], *tokens]
        self.check(namespace, tokens, lead)

    @invariant()
    def every_known_prompt_is_explained(self) -> None:
        """Look up what goes on after the latest known prompts, and what leaves them, there and elsewhere."""
        for known in self.known[-4:]:
            for namespace in (known.namespace, PLACES["base"], PLACES["another salt"]):
                self.check(namespace, [*known.tokens, 9], 0)
                self.check(namespace, [*known.tokens[: len(known.tokens) * 2 // 3], *[9] * 40], 1)

    def check(self, namespace: str, tokens: list[int], lead: int) -> None:
        """Compare the explanation of a lookup with that of the list."""
        with self.prefixes.lookup(namespace, tokens) as lease:
            miss = self.prefixes.cache.explain(lease, tokens, self.prefixes.parts, lead)
        assert miss == self.expected(namespace, tokens, lead, lease.tokens)

    def expected(self, namespace: str, tokens: list[int], lead: int, reused: int) -> Miss | None:
        """Explain a miss from everything that was stored."""
        reach = floor(len(tokens) - 1)
        paths = self.paths(namespace)
        stored = floor(longest(tokens[:-1], paths))
        if not reach:
            return Miss(MissReason.TOO_SHORT)
        if reused >= (reach if self.prefixes.parts.resumes_anywhere else max(1, len(tokens) - BLOCK_TOKENS)):
            return None
        own = [each for each in self.known if each.namespace == namespace]
        live = [each for each in own if not each.invalidated]
        token = longest(tokens, [*paths, *(each.tokens for each in live)])
        if reused < stored:
            return Miss(MissReason.RESUME_POINT, token, reused, self.age(tokens, live))
        here = min(floor(longest(tokens, [each.tokens for each in live])), reach)
        gone = min(max((floor(common(tokens, each.tokens)) for each in own if each.invalidated), default=0), reach)
        visible = (partition_of(namespace), UNSALTED)
        others = [
            each
            for each in self.known
            if each.namespace != namespace and partition_of(each.namespace) in visible and not each.invalidated
        ]
        elsewhere = min(floor(longest(tokens, [each.tokens for each in others])), reach)
        if elsewhere > max(stored, here, gone):
            best = longest(tokens, [each.tokens for each in others])
            closest = [each for each in others if common(tokens, each.tokens) == best]
            fewest = min(len(differing(namespace, each.namespace)) for each in closest)
            other = [each for each in closest if len(differing(namespace, each.namespace)) == fewest][-1]
            age, differs = self.now - other.at, differing(namespace, other.namespace)
            return Miss(MissReason.OTHER_NAMESPACE, elsewhere, seen=age, differs=differs)
        if max(here, gone) > stored and here >= gone:
            return Miss(MissReason.EVICTED, here, seen=self.age(tokens, live))
        if max(here, gone) > stored:
            invalidated = [each for each in own if each.invalidated and floor(common(tokens, each.tokens)) >= gone]
            return Miss(MissReason.INVALIDATED, gone, seen=self.now - max(each.at for each in invalidated))
        if token <= lead and not stored:
            return Miss(MissReason.NEVER_SEEN)
        if any(each.tokens == tokens[:token] for each in live):
            return None
        return Miss(MissReason.DIVERGED, token, seen=self.age(tokens, live))

    def age(self, tokens: list[int], prompts: list[Known]) -> float:
        """Return how long ago the latest of the closest prompts was stored."""
        best = longest(tokens, [each.tokens for each in prompts])
        return self.now - max(each.at for each in prompts if common(tokens, each.tokens) == best)

    def paths(self, namespace: str) -> list[list[int]]:
        """Return all stored paths of a namespace."""
        found: list[list[int]] = []

        def walk(node: Node, path: list[int]) -> None:
            path = [*path, *memoryview(node.key).cast("I")]
            found.append(path)
            for child in node.children():
                walk(child, path)

        for top in self.prefixes.cache.trie.tops(namespace.__eq__):
            walk(top, [])
        return found


def common(one: list[int], two: list[int]) -> int:
    """Return how many tokens two prompts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def longest(tokens: list[int], others: list[list[int]]) -> int:
    """Return how many tokens a prompt has in common with the closest of others."""
    return max((common(tokens, other) for other in others), default=0)


def floor(tokens: int) -> int:
    """Return the tokens of the full blocks of so many tokens."""
    return max(0, tokens) // BLOCK_TOKENS * BLOCK_TOKENS


MissMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None, print_blob=True)
TestMissMachine = MissMachine.TestCase
