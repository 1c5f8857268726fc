"""Workload "prefix": time to first token of a new prompt, and of a prompt with a cached prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench, Figures
from benchmarks.figures import COMPUTED, FIRST_TOKEN, OURS, Metric, Result, Row
from benchmarks.floor import FLOOR, Floor
from benchmarks.http_peer import MLX_LM
from benchmarks.systems import Request, System
from benchmarks.words import prompt

COLD = Metric("first token, cold", "ms")
SUFFIX = 32
LONG = 4096
"""Longer prefixes get two rounds, because their cold prefill takes most of the run."""


def prefix(bench: Bench) -> Result:
    """W1 and W2: a new prompt, then the same prompt with 32 other tokens at its end."""
    result = Result(f"First token, cold; then warm: a known prefix and {SUFFIX} new tokens")
    lengths: dict[str, tuple[int, ...]] = bench.size({"small": (512, 2048, 8192), "0.6b": (256,)}, {"small": (64,)})
    for shape, prefixes in lengths.items():
        for tokens in prefixes:
            rounds = min(bench.rounds, 2) if shape == "0.6b" or tokens > LONG else bench.rounds
            result.rows += pairs(bench, shape, tokens, rounds)
    for case in dict.fromkeys(row.case for row in result.rows):
        result.aim(f"{case}: ours / {MLX_LM}", result.ratios(case, FIRST_TOKEN, OURS, MLX_LM), 0.8)
        result.aim(f"{case}: ours / floor", result.ratios(case, FIRST_TOKEN, OURS, FLOOR), 1.25)
    return result


def pairs(bench: Bench, shape: str, tokens: int, rounds: int) -> list[Row]:
    """Measure a cold and a warm prompt of one length, with servers of its own."""
    model = bench.model(shape)
    floor = Floor(model)
    with bench.running(model) as systems:
        return pairs_of(bench, systems, (model, floor), tokens, rounds)


def pairs_of(bench: Bench, systems: Sequence[System], model: tuple[Path, Floor], tokens: int, rounds: int) -> list[Row]:
    """Measure a cold and a warm prompt of one length, of a model that the systems have loaded."""
    path, floor = model
    known = floor.prefilled(prompt(path.name, tokens))
    sides: dict[str, Callable[[str], Figures]] = {s.name: partial(_pair, s, path, tokens) for s in systems}
    sides[FLOOR] = lambda seed: {FIRST_TOKEN: floor.warm_first_token(known, prompt(seed, SUFFIX))}
    return bench.take_turns(f"{path.name}, {tokens} tokens", sides, rounds)


def _pair(system: System, model: Path, tokens: int, seed: str) -> Figures:
    known = prompt(seed, tokens)
    first, second = (system.ask(Request(model, known + prompt(seed + end, SUFFIX), 2)) for end in "ab")
    figures = {COLD: first.first_token, FIRST_TOKEN: second.first_token}
    if second.cached_tokens is not None:
        figures[COMPUTED] = second.prompt_tokens - second.cached_tokens
    return figures
