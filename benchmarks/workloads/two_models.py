"""Workload "two-models": the speed of each of two streams on different models, relative to its speed alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.bench import Bench, Figures
from benchmarks.figures import MORE, OURS, Metric, Result
from benchmarks.systems import Answer, Request, System, ask_all
from benchmarks.words import prompt

PROMPT_TOKENS = 32
CASE = "small and other"
KEPT = {name: Metric(f"speed kept by {name}", "of that alone", MORE) for name in ("small", "other")}


def two_models(bench: Bench) -> Result:
    """Measure a stream of each model alone and concurrently. Peers hold one model at a time, so they are left out."""
    result = Result("Two models at once: what a stream keeps of its speed alone")
    models = {name: bench.model(name) for name in KEPT}
    ours = [start for start in bench.starters if start.name == OURS]
    with bench.running(*models.values(), starters=ours) as systems:
        turn = partial(_turn, models=models, tokens=bench.size(128, 12))
        result.rows = bench.take_turns(CASE, {system.name: partial(turn, system) for system in systems})
    for name, metric in KEPT.items():
        row = result.find(CASE, metric, OURS)
        result.aim(f"{name} beside the other", row.values if row else (), 0.4, MORE)
    return result


def _turn(system: System, seed: str, *, models: dict[str, Path], tokens: int) -> Figures:
    asked = [Request(model, prompt(f"{seed}/{name}", PROMPT_TOKENS), tokens) for name, model in models.items()]
    for request in asked:
        system.ask(request)  # both models are loaded and both prompts cached, so that only decode is measured
    alone = [_speed(system.ask(request)) for request in asked]
    together = [_speed(answer) for answer in ask_all(system, asked)]
    return {metric: at_once / single for metric, at_once, single in zip(KEPT.values(), together, alone, strict=True)}


def _speed(answer: Answer) -> float:
    return (answer.tokens - 1) / (answer.arrivals[-1] - answer.arrivals[0])
