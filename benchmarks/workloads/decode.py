"""Workload "decode": throughput of concurrent streams."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench, Figures
from benchmarks.figures import MORE, OURS, SPEED, Result, Row
from benchmarks.floor import FLOOR, IN_PROCESS, Floor
from benchmarks.http_peer import MLX_LM
from benchmarks.systems import Request, System, ask_all, throughput
from benchmarks.words import prompt

PROMPT_TOKENS = 32


def decode(bench: Bench) -> Result:
    """
    W4: 1 to 16 clients with short prompts.

    In process, mlx-lm's batch generator runs several prompts. The floor is the model's step alone over as many rows.
    """
    result = Result("Decode: 1 to 16 clients")
    result.rows += _shape(bench, "small", bench.size((1, 4, 8, 16), (1, 2)), bench.size(96, 6), bench.rounds)
    if not bench.quick:
        result.rows += _shape(bench, "0.6b", (1, 8), 12, min(bench.rounds, 2))
    for case in dict.fromkeys(row.case for row in result.rows):
        bound = 0.97 if case.endswith(" 1 client") else 0.95
        result.aim(f"{case}: ours / {IN_PROCESS}", result.ratios(case, SPEED, OURS, IN_PROCESS), bound, MORE)
        if case.endswith(" 8 clients"):
            result.aim(f"{case}: ours / {MLX_LM}", result.ratios(case, SPEED, OURS, MLX_LM), 1.15, MORE)
    return result


def _shape(bench: Bench, shape: str, numbers: tuple[int, ...], tokens: int, rounds: int) -> list[Row]:
    model = bench.model(shape)
    floor = Floor(model)
    rows: list[Row] = []
    with bench.running(model) as systems:
        for clients in numbers:
            sides: dict[str, Callable[[str], Figures]] = {
                system.name: partial(_together, system, model, clients, tokens) for system in systems
            }
            sides[IN_PROCESS] = partial(_in_process, floor, clients, tokens)
            sides[FLOOR] = partial(_bare, floor, clients, tokens)
            rows += bench.take_turns(f"{shape}, {clients} client{'s' * (clients > 1)}", sides, rounds)
    return rows


def _in_process(floor: Floor, clients: int, tokens: int, seed: str) -> Figures:
    if clients == 1:
        return floor.generate(prompt(f"{seed}/0", PROMPT_TOKENS), tokens)
    return floor.generate_together([prompt(f"{seed}/{client}", PROMPT_TOKENS) for client in range(clients)], tokens)


def _together(system: System, model: Path, clients: int, tokens: int, seed: str) -> Figures:
    asked = [Request(model, prompt(f"{seed}/{client}", PROMPT_TOKENS), tokens) for client in range(clients)]
    return {SPEED: throughput(ask_all(system, asked))}


def _bare(floor: Floor, clients: int, tokens: int, seed: str) -> Figures:
    return floor.bare_steps(prompt(seed, PROMPT_TOKENS), tokens, clients)
