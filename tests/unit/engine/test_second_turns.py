"""A second turn computes what is new in one pass, whatever the first turn ended with, and answers as a cold one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.cache.mlx.last_logits import LastLogits
from daemon.engine.execution.prefill import Prefill
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine.families import Family, write
from tests.unit.engine.harness import Answer, Harness
from tests.unit.engine.prompts import apart

KINDS = ["qwen3", "gemma3_text", "gpt_oss", "mamba2", "qwen3_next"]
"""Full attention, windows, windows with sinks, recurrent layers, and recurrent layers beside attention."""

LAST_OF_ALL = 1


@pytest.fixture(name="passes")
def _passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Return the tokens of each pass over a prompt, and whether it leaves logits."""
    seen: list[tuple[int, bool]] = []
    compute = Prefill._compute

    def counted(prefill: Prefill, tokens: int, *, logits: bool) -> None:
        seen.append((tokens, logits))
        compute(prefill, tokens, logits=logits)

    monkeypatch.setattr(Prefill, "_compute", counted)
    return seen


def ask(harness: Harness, path: Path, prompt: list[int], mode: pb.CacheMode = pb.CACHE_MODE_READ_WRITE) -> Answer:
    """Return an answer of 24 tokens, with their log-probabilities."""
    return harness.run(request(path, prompt, mode))


def request(path: Path, prompt: list[int], mode: pb.CacheMode, count: int = 24, **fields: Any) -> pb.GenerateRequest:
    """Return a request."""
    return pb.GenerateRequest(
        model=str(path),
        tokens=pb.TokenIds(ids=prompt),
        max_tokens=count,
        top_logprobs=0,
        stop=pb.Stop(ignore_eos=True),
        cache=pb.CacheOptions(mode=mode),
        **fields,
    )


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("kept", [24, 8, 0], ids=["answer", "part", "nothing"])
def test_second_turn_computes_what_is_new(
    harness: Harness, tmp_path: Path, passes: list[tuple[int, bool]], family: str, kept: int
) -> None:
    """The answer comes back as it was, without its beginning, or not at all."""
    path, prompt = write(tmp_path, Family(family)), apart(203, 1)
    first = ask(harness, path, prompt)
    turn = [*prompt, *first.ids[24 - kept :], *apart(50, 2)]
    new = len(turn) - len(prompt) - (24 if kept == 24 else 0)
    passes.clear()

    warm = ask(harness, path, turn)

    assert (len(turn) - warm.cached, passes) == (new, [(new, True)])
    cold = ask(harness, path, turn, pb.CACHE_MODE_BYPASS)
    assert (warm.ids, cold.cached) == (cold.ids, 0)
    assert max(abs(a.logprob - b.logprob) for a, b in zip(warm.logprobs, cold.logprobs, strict=True)) <= 2e-3


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "qwen3_next"])
def test_tokens_that_were_guessed_right_are_reused(harness: Harness, tmp_path: Path, family: str) -> None:
    """And the last token, which no pass was fed: the KV of an answer lacks nothing at its end."""
    path, prompt = write(tmp_path, Family(family)), [5, 6, 7, 8] * 20
    first = harness.run(request(path, prompt, pb.CACHE_MODE_READ_WRITE, speculation=pb.SPECULATION_NGRAM))
    turn = [*prompt, *first.ids, 9, 10, 11]

    warm = ask(harness, path, turn, pb.CACHE_MODE_READ_ONLY)

    assert len(turn) - warm.cached == 3
    assert warm.ids == ask(harness, path, turn, pb.CACHE_MODE_BYPASS).ids


def test_short_answer_is_not_worth_a_pass(harness: Harness, tmp_path: Path) -> None:
    path, prompt = write(tmp_path, Family("qwen3")), apart(60, 3)
    first = harness.run(request(path, prompt, pb.CACHE_MODE_READ_WRITE, count=15))
    turn = [*prompt, *first.ids, *apart(5, 4)]

    assert len(turn) - ask(harness, path, turn, pb.CACHE_MODE_READ_ONLY).cached == 6


def test_long_prompt_takes_its_last_token_along(
    harness: Harness, tmp_path: Path, passes: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are computed after that alone; a model without a view leaves it to the decoder, and answers alike."""
    path, prompt = write(tmp_path, Family("qwen3")), apart(150, 5)
    seen = ask(harness, path, prompt, pb.CACHE_MODE_BYPASS)
    (entry,) = harness.engine._models.entries()
    assert isinstance(entry.model.last, LastLogits)
    assert passes == [(150, True)]

    object.__setattr__(entry.model, "last", None)
    assert ask(harness, path, prompt, pb.CACHE_MODE_BYPASS).ids == seen.ids
    assert passes[LAST_OF_ALL:] == [(149, False)]
