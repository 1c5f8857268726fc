"""Switching: two models, asked in turn."""

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
CASE = "small and other"


def switching(bench: Bench) -> Result:
    """W5: each request is for the other model than the one before. vllm-mlx, as it is started here, serves one."""
    result = Result("Switching: two models, each request for the other one")
    models = bench.model("small"), bench.model("other")
    with bench.running(*models, starters=[start for start in bench.starters if start.name != VLLM_MLX]) as systems:
        result.rows = bench.take_turns(CASE, {system.name: partial(_turn, system, models) for system in systems})
    result.aim(f"ours / {MLX_LM}", result.ratios(CASE, FIRST_TOKEN, OURS, MLX_LM), 0.1)
    return result


def _turn(system: System, models: tuple[Path, ...], seed: str) -> Figures:
    asked = [Request(model, prompt(f"{seed}/{n}", PROMPT_TOKENS), 4) for n in range(2) for model in models]
    return {FIRST_TOKEN: median(system.ask(request).first_token for request in asked)}
