"""Readers of one prefix at random: groups that nest, split, grow and end never copy what they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from daemon.kv.mlx import sharing
from daemon.kv.mlx.shared_prefix import Memory
from daemon.shared.last_events import ends_call
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Answer, Harness, greedy

LEAST = 32
TRUNK = [(i * i + 7 * i + i // 5) % 700 + 3 for i in range(160)]
"""What all prompts begin with a part of."""

BRANCHES = (48, 80, 112, 160)
"""Where prompts leave it."""

MOST = 6
COUNT = 32
"""Tokens of an answer."""


class ReadersMachine(RuleBasedStateMachine):
    """
    Requests that join, go on, are cancelled and end, behind prefixes of several lengths.

    Args:
        harness: An engine, whose prefix cache holds the trunk.
        path: The model.
    """

    def __init__(self, harness: Harness, path: str) -> None:
        super().__init__()
        self.harness = harness
        self.path = path
        self.running: dict[int, list[int]] = {}
        self.memories: set[Memory] = set()
        self.copied = self.stats.shared_copied_tokens

    @property
    def stats(self) -> pb.PrefixCacheStats:
        """The figures of now."""
        return self.harness.engine._runner._outbox._figures().prefix_cache

    @property
    def token_bytes(self) -> int:
        """Bytes of KV of a token."""
        return self.harness.engine._models.entries()[0].model.layout.bytes_per_token

    @initialize(salts=st.lists(st.integers(3, 700), min_size=3, max_size=3))
    def nest(self, salts: list[int]) -> None:
        """Begin with two readers of a long prefix, and one that leaves it earlier."""
        for branch, salt in zip((160, 160, 80), salts, strict=True):
            self.join(branch, 3, salt)
        while self.harness.engine._runner.decoding < len(salts) and not any(map(self.ended, self.running)):
            self.step()

    def ended(self, call: int) -> bool:
        """Whether a call has its last event."""
        events = self.harness.of(call)
        return bool(events) and ends_call(events[-1])

    @precondition(lambda self: len(self.running) < MOST)
    @rule(branch=st.sampled_from(BRANCHES), end=st.integers(1, 20), salt=st.integers(3, 700))
    def join(self, branch: int, end: int, salt: int) -> None:
        """Begin an answer; nothing is stored, so that what is reused is the trunk."""
        prompt = [*TRUNK[:branch], *((salt + 11 * i) % 700 + 3 for i in range(end))]
        self.running[self.harness.begin(greedy(self.path, prompt, COUNT, pb.CACHE_MODE_READ_ONLY))] = prompt

    @rule(steps=st.integers(1, 6))
    def grow(self, steps: int) -> None:
        """Let all go on."""
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """Let all go on for one step; only rows that become a new prefix are copied, and these once."""
        self.harness.step()
        new = {prefix.memory for prefix in self.harness.engine._runner.readers.prefixes()} - self.memories
        copied = self.stats.shared_copied_tokens - self.copied
        assert copied * self.token_bytes <= sum(memory.nbytes for memory in new)
        self.memories |= new
        self.copied += copied

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, MOST - 1))
    def cancel(self, which: int) -> None:
        """One leaves in the middle."""
        call = list(self.running)[which % len(self.running)]
        del self.running[call]
        self.harness.cancel(call)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, MOST - 1))
    def finish(self, which: int) -> None:
        """One is answered as it is alone, whatever was read beside it: bit for bit."""
        call = list(self.running)[which % len(self.running)]
        prompt = self.running.pop(call)
        answer = self.answer(call)
        assert not answer.failure.message
        assert answer.content == self.alone(prompt).content

    def alone(self, prompt: list[int]) -> Answer:
        """Return the answer that a prompt gets without any reuse."""
        return self.answer(self.harness.begin(greedy(self.path, prompt, COUNT, pb.CACHE_MODE_BYPASS)))

    def answer(self, call: int) -> Answer:
        """Return the answer of a call; the others go on meanwhile, and may come to a prefix or leave it."""
        while not self.ended(call):
            self.step()
        return Answer(self.harness.finish(call))

    @invariant()
    def prefixes_are_held_once(self) -> None:
        """Each token of the trunk is in one prefix at most, and all that lie below one have its readers as well."""
        prefixes = self.harness.engine._runner.readers.prefixes()
        for prefix, readers in prefixes.items():
            if prefix.parent is not None:
                assert prefix.parent.stop == prefix.start
                assert prefixes[prefix.parent] >= readers
        assert self.stats.shared_bytes == sum(prefix.stop - prefix.start for prefix in prefixes) * self.token_bytes

    def teardown(self) -> None:
        """All end; no prefix stays."""
        for call in self.running:
            self.harness.cancel(call)
        self.harness.settle()
        assert not self.harness.engine._runner.readers.prefixes()


@pytest.mark.parametrize("examples", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_readers_at_random_are_exact_and_copy_nothing(
    engine: Callable[..., Harness], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    """Nested groups come and go: answers have the bits of answers alone, and each shared token is held once."""
    monkeypatch.setattr(sharing, "LEAST_SHARED", LEAST)
    path = str(write(tmp_path, Family("qwen3")))
    harness = engine()
    harness.finish(harness.begin(greedy(path, [*TRUNK, 5], COUNT)))
    run_state_machine_as_test(
        lambda: ReadersMachine(harness, path),  # type: ignore[arg-type]  # a factory will do
        settings=settings(
            max_examples=examples,
            stateful_step_count=20,
            deadline=None,
            print_blob=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert harness.figures.prefix_cache.tokens_shared
