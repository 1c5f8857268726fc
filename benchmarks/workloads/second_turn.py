"""The second turn of a conversation with models that are not plain attention."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.bench import Bench, Figures
from benchmarks.figures import COMPUTED, FIRST_TOKEN, OURS, Metric, Result
from benchmarks.http_peer import MLX_LM
from benchmarks.systems import Request, System
from benchmarks.words import prompt

NEW_TOKENS, REPLY_TOKENS = 64, 32
COLD = Metric("first token, first turn", "ms")
WHOLE, PART = "the answer comes back", "its thoughts are left out"
KEPT_WORDS = {WHOLE: REPLY_TOKENS, PART: 8}
"""How many of the last words of an answer the next prompt has: programs do not send back what a model thought."""


def second_turn(bench: Bench) -> Result:
    """W8: hybrid of recurrent layers and attention, and sliding windows; what was said before is in the prompt."""
    tokens = bench.size(1024, 64)
    result = Result(f"Second turn, {tokens} tokens in the first, on models that are not plain attention")
    for shape in ("hybrid", "window"):
        model = bench.model(shape)
        with bench.running(model) as systems:
            for how, words in KEPT_WORDS.items():
                sides = {system.name: partial(_two_turns, system, model, tokens, words) for system in systems}
                result.rows += bench.take_turns(f"{shape}, {how}", sides, min(bench.rounds, 2))
        case = f"{shape}, {PART}"
        computed = result.find(case, COMPUTED, OURS)
        bound = NEW_TOKENS + KEPT_WORDS[PART] + 32
        result.aim(f"{case}: tokens computed", computed.values if computed else (), bound)
        result.aim(f"{case}: ours / {MLX_LM}", result.ratios(case, FIRST_TOKEN, OURS, MLX_LM), 0.3)
    return result


def _two_turns(system: System, model: Path, tokens: int, words: int, seed: str) -> Figures:
    text = prompt(seed, tokens)
    first = system.ask(Request(model, text, REPLY_TOKENS))
    kept = "".join(f" {word}" for word in first.text.split()[-words:])
    second = system.ask(Request(model, text + kept + prompt(seed + "/2", NEW_TOKENS), 2))
    figures = {COLD: first.first_token, FIRST_TOKEN: second.first_token}
    if second.cached_tokens is not None:
        figures[COMPUTED] = second.prompt_tokens - second.cached_tokens
    return figures
