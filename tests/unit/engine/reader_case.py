"""A model in an engine of its own, with requests that read one prefix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import pytest

from daemon.engine.execution.decoder import Decoder
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness, greedy

ROUNDED = 0.05
"""Of log-probabilities in bfloat16: a sum in two parts is rounded once more."""

STEPS = 3
"""Turns, a token each, between an answer's begin and the next."""


@contextmanager
def frozen() -> Iterator[None]:
    """Let no answer go on: how long a request takes to come is not known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "firsts", lambda decoder: ())
        patch.setattr(Decoder, "step", lambda decoder: ())
        yield


class Case:
    """A model in an engine of its own."""

    def __init__(self, harness: Harness, path: Path) -> None:
        self.harness = harness
        self.path = str(path)

    def begin(self, prompt: list[int], count: int = 40, mode: pb.CacheMode = pb.CACHE_MODE_READ_WRITE) -> int:
        """Begin an answer, while the others wait, and let all of them go on for a few tokens."""
        runner = self.harness.engine._runner
        before = runner.decoding
        with frozen():
            call = self.harness.begin(greedy(self.path, prompt, count, mode))
            self.harness.until(lambda: runner.decoding > before)
        for _ in range(STEPS):
            self.harness.step()
        return call

    def assert_as_alone(self, call: int, prompt: list[int], count: int = 40, bound: float = 0.0) -> None:
        """Finish an answer and compare it with the one that its prompt gets alone: bits, or values within a bound."""
        answer = Answer(self.harness.finish(call))
        alone = Answer(self.harness.finish(self.begin(prompt, count, pb.CACHE_MODE_BYPASS)))
        assert not answer.failure.message
        pairs = list(zip(answer.logprobs, alone.logprobs, answer.ids, alone.ids, strict=True))
        if bound == ROUNDED:  # tokens that are as likely as each other may change places, and all behind them changes
            pairs = [*takewhile(lambda pair: pair[2] == pair[3], pairs)]
            assert pairs
        assert all(one == other for _, _, one, other in pairs)
        assert max(abs(one.logprob - other.logprob) for one, other, _, _ in pairs) <= bound

    @property
    def stats(self) -> pb.PrefixCacheStats:
        """The figures of now."""
        return self.harness.engine._runner._outbox._figures().prefix_cache

    @property
    def spans(self) -> dict[tuple[int, int], int]:
        """The tokens of each shared prefix, and its readers."""
        prefixes = self.harness.engine._runner.readers.prefixes()
        return {(prefix.start, prefix.stop): readers for prefix, readers in prefixes.items()}
