"""Requests whose tokens may be guessed, and counts of what passes find out that check guesses of several rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from daemon.engine.execution import batch, together
from daemon.engine.execution.sampling import Sampled
from mlx_sidecar.v1 import sidecar_pb2 as pb


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

    def check(rows: Sequence[batch.Row], guesses: list[list[int]], caches: list[Any]) -> list[list[Sampled]]:
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
