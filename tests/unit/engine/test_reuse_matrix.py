"""Warm equals cold for every kind of cache, at every edge: of blocks, windows, growth steps, chunks, and turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import mlx.core as mx
import pytest

from daemon.engine.scheduling import policy
from daemon.kv.keys import BLOCK_TOKENS
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.cold_runs import CLOSE
from tests.unit.engine.families import CHECKPOINTS, EXACT, FAMILIES, Family, write
from tests.unit.engine.harness import Answer, Harness
from tests.unit.engine.prompts import ids

EDGES = [16, 17, 31, 33, 48, 255, 256, 257]
"""Lengths of prompts around the ends of blocks, of windows (32 and 20 tokens) and of the steps in which caches grow."""


BYPASS, READ_ONLY = pb.CACHE_MODE_BYPASS, pb.CACHE_MODE_READ_ONLY


class Case:
    """One family's model in an engine of its own."""

    def __init__(self, harness: Harness, path: Path, family: str) -> None:
        self.harness = harness
        self.family = family
        self.path = str(path)
        self.harness.run(pb.GetOrLoadRequest(model=self.path))

    def begin(self, prompt: list[int], mode: pb.CacheMode = pb.CACHE_MODE_READ_WRITE, count: int = 3) -> int:
        """Begin an answer."""
        return self.harness.begin(
            pb.GenerateRequest(
                model=self.path,
                tokens=pb.TokenIds(ids=prompt),
                max_tokens=count,
                top_logprobs=0,
                stop=pb.Stop(ignore_eos=True),
                cache=pb.CacheOptions(mode=mode),
            )
        )

    def answer(self, prompt: list[int], mode: pb.CacheMode = pb.CACHE_MODE_READ_WRITE, count: int = 3) -> Answer:
        """Return an answer."""
        return Answer(self.harness.finish(self.begin(prompt, mode, count)))

    def assert_warm_is_cold(self, prompt: list[int], cached: int) -> None:
        """Compare the answer that reuses exactly so many tokens with one that reuses none."""
        warm, cold = self.answer(prompt, READ_ONLY), self.answer(prompt, BYPASS)
        assert (warm.cached, cold.cached) == (cached, 0)
        self.assert_same(warm, cold)

    def assert_same(self, warm: Answer, cold: Answer) -> None:
        """Compare two answers: bit by bit where the family promises that, else tokens, and logits within a bound."""
        assert not warm.failure.message
        assert warm.ids == cold.ids
        difference = [abs(a.logprob - b.logprob) for a, b in zip(warm.logprobs, cold.logprobs, strict=True)]
        assert max(difference) <= (0 if self.family in EXACT else CLOSE)

    def poison(self, prompt: list[int]) -> None:
        """Change one value of what is stored of a prompt: of its last block, or of its checkpoint if it has none."""
        prefixes = self.harness.engine._memory._prefixes
        (namespace,) = prefixes.trie.namespaces
        parts = self.harness.engine._models.entries()[0].model.layout.parts
        with prefixes.lookup(namespace, prompt, parts) as lease:
            node = lease.nodes[-1]
            extent = node.extents[0] if node.extents else None
            if extent is not None:
                *others, values = cast("tuple[mx.array, ...]", extent.payload)
                end = values.shape[2] if node.is_tail else (node.depth - extent.start) * BLOCK_TOKENS
                values[-1, 0, end - lease.unused - 1, 0] = 1000.0
                extent.payload = (*others, values)
            else:
                assert node.checkpoint is not None
                stacks, _ = cast("tuple[tuple[mx.array, ...], object]", node.checkpoint.payload)
                stacks[-1][(0,) * stacks[-1].ndim] = 1000.0

    def again(self, length: int) -> int:
        """Return how many tokens of a prompt of so many are reused when it comes again."""
        return length - 1 if self.anywhere else floor(length - 1)

    @property
    def anywhere(self) -> bool:
        """Whether it can go on after any block."""
        return self.family not in CHECKPOINTS


@pytest.fixture(name="case", params=list(FAMILIES))
def _case(request: pytest.FixtureRequest, engine: Callable[..., Harness], tmp_path: Path) -> Case:
    family: str = request.param
    return Case(engine(), write(tmp_path, Family(family)), family)


def floor(tokens: int) -> int:
    """Return the largest multiple of the block size that is not above `tokens`."""
    return tokens - tokens % BLOCK_TOKENS


def test_reuse_is_exact_for_any_prompt_length(case: Case) -> None:
    """Asked again, it goes on in front of its last token or block; with another end, at the last block before that."""
    for salt, length in enumerate(EDGES):
        prompt = ids(length, salt)
        case.answer(prompt)
        case.assert_warm_is_cold(prompt, case.again(length) if length > BLOCK_TOKENS else 0)
        case.assert_warm_is_cold([*prompt[: floor(length - 1)], 9, 8, 7], floor(length - 1))


def test_reuse_is_exact_wherever_prompts_diverge(case: Case) -> None:
    """The second leaves a checkpoint where they part, where one is needed; the third goes on from there."""
    base = ids(150)
    case.answer(base)
    for parts_at in (16, 33, 64, 79, 130):
        second, third = ([*base[:parts_at], *ids(40, salt)] for salt in (parts_at, parts_at + 1))
        answer = case.answer(second)
        assert answer.cached == parts_at or not case.anywhere
        case.assert_same(answer, case.answer(second, BYPASS))
        case.assert_warm_is_cold(third, parts_at if case.anywhere else floor(parts_at))


def test_short_prompt_reuses_a_long_one_exactly(case: Case) -> None:
    """A beginning of what is stored."""
    case.answer(ids(200))
    for length in (120, 97):
        case.answer(ids(length))
        case.assert_warm_is_cold(ids(length), case.again(length))


def test_chat_turn_resumes_from_the_last_answer(case: Case) -> None:
    """What was generated is reused, however long it was; only what is new is computed."""
    turn = ids(45)
    for salt in range(3):
        answer = case.answer(turn, count=57)
        turn = [*turn, *answer.ids]
        case.assert_warm_is_cold([*turn, *ids(19, salt)], len(turn))
        turn += ids(19, salt)


def test_rows_that_decode_together_keep_their_ends(case: Case) -> None:
    """Each row of a batch has its own window and its own state."""
    prompts = [ids(45), ids(61, 1)]
    calls = [case.begin(prompt, count=40) for prompt in prompts]
    for call, prompt in zip(calls, prompts, strict=True):
        answer = Answer(case.harness.finish(call))
        turn = [*prompt, *answer.ids, *ids(19, 2)]
        warm, cold = case.answer(turn, READ_ONLY), case.answer(turn, BYPASS)
        assert (warm.cached, cold.cached) == (len(prompt) + 40, 0)
        case.assert_same(warm, cold)


def test_reuse_is_exact_after_small_prefill_chunks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 tokens, the fewest there are, and more; they end before, at and after the ends of blocks and windows."""
    for salt, chunk in enumerate((16, 23, 48)):
        monkeypatch.setattr(policy.ChunkSizer, "size", lambda *_, chunk=chunk: chunk)
        prompt = ids(130, salt)
        first = case.answer(prompt)
        case.assert_same(first, case.answer(prompt, BYPASS))
        case.assert_warm_is_cold(prompt, case.again(130))


def test_reuse_of_a_cancelled_prefill_is_exact(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next goes on from where it was cancelled."""
    monkeypatch.setattr(policy.ChunkSizer, "size", lambda *_: 32)
    prompt = ids(200)
    call = case.begin(prompt)
    case.harness.until(lambda: any(event.generate.prefill.done >= 96 for event in case.harness.of(call)))
    done = max(event.generate.prefill.done for event in case.harness.of(call))
    case.harness.cancel(call)
    monkeypatch.undo()
    case.assert_warm_is_cold(prompt, done)
    case.harness.settle()


def test_reuse_is_exact_after_an_eviction_of_the_tail(case: Case) -> None:
    """What is left is reused or not, but never wrong; stored again, it is whole again."""
    prompt = ids(300)
    case.answer(prompt)
    prefixes = case.harness.engine._memory._prefixes
    for _ in range(4):
        prefixes.shed(prefixes.memory_usage() // 2)
        prefixes.check_integrity()
        warm, cold = case.answer(prompt, READ_ONLY), case.answer(prompt, BYPASS)
        case.assert_same(warm, cold)
    case.answer(prompt)
    case.assert_warm_is_cold([*prompt, 5, 6], 300)


def test_reuse_comparison_detects_one_wrong_value(case: Case) -> None:
    """Poison: what is restored is really what the answer is computed from."""
    prompt = ids(100)
    case.answer(prompt)
    expected = case.answer(prompt, BYPASS)
    case.assert_same(case.answer(prompt, READ_ONLY), expected)
    case.poison(prompt)
    with pytest.raises(AssertionError):
        case.assert_same(case.answer(prompt, READ_ONLY), expected)
