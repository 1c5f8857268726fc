"""Workload "second-turn": reuse in conversations with recurrent and sliding-window models."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.bench import Bench, Figures
from benchmarks.figures import COMPUTED, FIRST_TOKEN, OURS, Metric, Result
from benchmarks.http_peer import MLX_LM
from benchmarks.systems import Answer, Request, System
from benchmarks.words import prompt

NEW_TOKENS, REPLY_TOKENS = 64, 32
TURNS = 8
"""Least rounds of the second turns: they are short, and of two rounds one is often a third slower than the other."""
COLD = Metric("first token, first turn", "ms")
AGAIN = Metric("tokens computed a second time", "")
WHOLE, PART, BRANCH = "the answer comes back", "its thoughts are left out", "the third branch"
KEPT_WORDS = {WHOLE: REPLY_TOKENS, PART: 8}
"""Number of the answer's last words in the next prompt: clients do not send a model's reasoning back."""


def second_turn(bench: Bench) -> Result:
    """
    W8: full attention, a hybrid of recurrent and attention layers, and a model with sliding windows.

    In the first cases a conversation has a second turn: it has to compute its new tokens, and no token again. In the
    last case three prompts diverge after the same prefix.
    """
    tokens = bench.size(1024, 64)
    result = Result(f"Second turn, {tokens} tokens in the first, on models that are not plain attention")
    for shape in ("small", "hybrid", "window"):
        model = bench.model(shape)
        with bench.running(model) as systems:
            for how, words in KEPT_WORDS.items():
                sides = {system.name: partial(_two_turns, system, model, tokens, words) for system in systems}
                result.rows += bench.take_turns(f"{shape}, {how}", sides, bench.size(max(TURNS, bench.rounds), 1))
            if shape == "small":
                continue  # any prefix of full attention can be reused: W1 measures that
            sides = {system.name: partial(_branches, system, model, tokens) for system in systems}
            result.rows += bench.take_turns(f"{shape}, {BRANCH}", sides, min(bench.rounds, 2))
        for how in KEPT_WORDS:
            again = result.find(f"{shape}, {how}", AGAIN, OURS)
            result.aim(f"{shape}, {how}: {AGAIN.name}", again.values if again else (), 0)
        aims = {WHOLE: 0.9, PART: 0.9, BRANCH: 0.3}
        for how, most in aims.items() if shape != "small" else ():
            asked = f"{shape}, {how}"
            result.aim(f"{asked}: ours / {MLX_LM}", result.ratios(asked, FIRST_TOKEN, OURS, MLX_LM), most)
    return result


def _two_turns(system: System, model: Path, tokens: int, words: int, seed: str) -> Figures:
    text = prompt(seed, tokens)
    first = system.ask(Request(model, text, REPLY_TOKENS))
    kept = "".join(f" {word}" for word in first.text.split()[-words:])
    second = system.ask(Request(model, text + kept + prompt(seed + "/2", NEW_TOKENS), 2))
    figures = {COLD: first.first_token, **_figures(second)}
    if second.cached_tokens is not None:
        known = first.prompt_tokens + (REPLY_TOKENS if words == REPLY_TOKENS else 0)
        figures[AGAIN] = known - second.cached_tokens
    return figures


def _branches(system: System, model: Path, tokens: int, seed: str) -> Figures:
    """Measure the last of three prompts that diverge at the same place."""
    text = prompt(seed, tokens)
    asked = [Request(model, text + prompt(f"{seed}/{n}", NEW_TOKENS), 2) for n in range(3)]
    return _figures([system.ask(request) for request in asked][-1])


def _figures(answer: Answer) -> Figures:
    figures = {FIRST_TOKEN: answer.first_token}
    if answer.cached_tokens is not None:
        figures[COMPUTED] = answer.prompt_tokens - answer.cached_tokens
    return figures
