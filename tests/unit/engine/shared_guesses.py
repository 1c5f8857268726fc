"""Requests whose tokens may be guessed, and counts of what passes find out that check guesses of several rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from daemon.engine.execution import batch, together
from daemon.engine.execution.row import Row
from daemon.engine.execution.sampling import Sampled
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.harness import Answer, Harness

FEW = {11: 100.0, 12: 100.0}
"""Only two tokens come, so that matches are many, and some of the guesses are right."""

SAMPLINGS = {
    "seeded": pb.Sampling(temperature=1.5, seed=11, logit_bias=FEW),
    "penalised": pb.Sampling(presence_penalty=0.01, frequency_penalty=0.02, repetition_penalty=1.01, logit_bias=FEW),
}
NGRAM, OFF, AUTO = pb.SPECULATION_NGRAM, pb.SPECULATION_OFF, pb.SPECULATION_AUTO
FORM = pb.ResponseFormat(regex=r'(\{"name": "(a|b)", "size": [0-9]\},\n){6}')
CLOSE = 2e-3


def asked(model: str, speculation: pb.Speculation, **fields: Any) -> pb.GenerateRequest:
    """Return a request of a prompt of ten tokens for sixty, with their log-probabilities."""
    options: dict[str, Any] = {
        "tokens": pb.TokenIds(ids=range(20, 30)),
        "max_tokens": 60,
        "top_logprobs": 1,
        "stop": pb.Stop(ignore_eos=True),
        "cache": pb.CacheOptions(mode=pb.CACHE_MODE_BYPASS),
    }
    return pb.GenerateRequest(model=model, speculation=speculation, **{**options, **fields})


def counting(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """
    Return counts of guesses, right and wrong ones, of tokens fed again, and of rows with and without guesses.

    Also the tokens of the largest pass, padding included.
    """
    counts: Counter[str] = Counter()
    plain = together.check

    def check(rows: Sequence[Row], guesses: list[list[int]], caches: list[Any]) -> list[list[Sampled]]:
        fed = [len(row.unfed) + 1 + len(own) for row, own in zip(rows, guesses, strict=True)]
        counts["fed again"] += sum(len(row.unfed) for row in rows)
        counts["largest"] = max(counts["largest"], len(rows) * max(fed))
        found = plain(rows, guesses, caches)
        for guessed, sampled in zip(guesses, found, strict=True):
            counts["right"] += len(sampled) - 1
            counts["wrong"] += len(sampled) <= len(guessed)
            counts["none"] += not guessed
            counts["rows"] += bool(guessed)
            counts["guessed"] += len(guessed)
        return found

    monkeypatch.setattr(batch, "check", check)
    return counts


def harness_ids(harness: Harness, text: str) -> list[int]:
    """Return the ids of a text as the engine sees them."""
    tokenizers = harness.engine._services.tokenizers
    source = next(iter(harness.engine._models.entries())).model.source
    return tokenizers.get(source).encode_prompt(text)


def guesses(answer: Answer) -> tuple[int, int]:
    """Return how many tokens were guessed from n-grams for an answer, and how many of them were right."""
    counts = {one.source: (one.guessed, one.accepted) for one in answer.finished.usage.guesses}
    assert counts.keys() <= {NGRAM}
    return counts.get(NGRAM, (0, 0))


def more_than(harness: Harness, call: int, events: int) -> bool:
    """Whether a call has had more than so many events."""
    return len(harness.of(call)) > events
