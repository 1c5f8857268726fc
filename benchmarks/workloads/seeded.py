"""Workload "seeded": throughput of concurrent clients with different seeds."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.bench import Bench, Figures
from benchmarks.figures import MORE, OURS, SPEED, Result
from benchmarks.http_peer import MLX_LM, VLLM_MLX
from benchmarks.systems import Request, System, ask_all, throughput
from benchmarks.words import prompt


def seeded(bench: Bench) -> Result:
    """W9: sampling at temperature 1 with one seed for each client. vllm-mlx has no seeds."""
    clients, tokens = bench.size((8, 64), (2, 6))
    case = f"{clients} clients"
    result = Result("Seeded clients, temperature 1")
    model = bench.model("small")
    with bench.running(model, starters=[start for start in bench.starters if start.name != VLLM_MLX]) as systems:
        sides = {system.name: partial(_turn, system, model, clients, tokens) for system in systems}
        result.rows = bench.take_turns(case, sides)
    result.aim(f"ours / {MLX_LM}", result.ratios(case, SPEED, OURS, MLX_LM), 2, MORE)
    return result


def _turn(system: System, model: Path, clients: int, tokens: int, seed: str) -> Figures:
    asked = [Request(model, prompt(f"{seed}/{n}", 32), tokens, seed=n + 1) for n in range(clients)]
    return {SPEED: throughput(ask_all(system, asked))}
