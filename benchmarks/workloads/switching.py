"""Workload "switching": requests that alternate between two models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.bench import Bench, Figures
from benchmarks.figures import FIRST_TOKEN, OURS, Result
from benchmarks.http_peer import MLX_LM, VLLM_MLX
from benchmarks.systems import Request, System
from benchmarks.words import prompt

PROMPT_TOKENS = 128
NEW_TOKENS = 32
FRESH, GROWING = "small and other", "small and other, each in its conversation"
KNOWN = "small and other, each asked what it was asked before"


def switching(bench: Bench) -> Result:
    """
    W5: each request is for another model than the request before.

    The prompts are new, or belong to two growing conversations, or were sent before. In the last case, only the cost of
    the switch remains. vllm-mlx is left out, because it serves one model.
    """
    result = Result("Switching: two models, each request for the other one")
    models = bench.model("small"), bench.model("other")
    with bench.running(*models, starters=[start for start in bench.starters if start.name != VLLM_MLX]) as systems:
        for case, turns in ((FRESH, _fresh), (GROWING, partial(_growing, bench.size(512, 64))), (KNOWN, _known)):
            result.rows += bench.take_turns(case, {system.name: partial(turns, system, models) for system in systems})
    for case in (FRESH, GROWING, KNOWN):
        result.aim(f"{case}: ours / {MLX_LM}", result.ratios(case, FIRST_TOKEN, OURS, MLX_LM), 0.1)
    return result


def _fresh(system: System, models: tuple[Path, ...], seed: str) -> Figures:
    asked = [Request(model, prompt(f"{seed}/{n}", PROMPT_TOKENS), 4) for n in range(2) for model in models]
    return {FIRST_TOKEN: median(system.ask(request).first_token for request in asked)}


def _known(system: System, models: tuple[Path, ...], seed: str) -> Figures:
    """Send the same prompts three times; the first time is not measured."""
    asked = [Request(model, prompt(seed, PROMPT_TOKENS), 4) for model in models]
    answers = [system.ask(request) for _ in range(3) for request in asked]
    return {FIRST_TOKEN: median(answer.first_token for answer in answers[len(asked) :])}


def _growing(tokens: int, system: System, models: tuple[Path, ...], seed: str) -> Figures:
    """Hold one conversation with each model; the first turns are not measured."""
    texts = {model: prompt(f"{seed}/{model.name}", tokens) for model in models}
    times: list[float] = []
    for turn in range(3):
        for model in models:
            answer = system.ask(Request(model, texts[model], 4))
            texts[model] += f" {answer.text.strip()}" + prompt(f"{seed}/{model.name}/{turn}", NEW_TOKENS)
            if turn:
                times.append(answer.first_token)
    return {FIRST_TOKEN: median(times)}
