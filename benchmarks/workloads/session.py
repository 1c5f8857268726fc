"""Workload "session": one agent whose prompt grows to 16,000 tokens, with a tool's result in each turn."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.bench import Bench, Figures
from benchmarks.figures import COMPUTED, FIRST_TOKEN, OURS, WALL, Metric, Result
from benchmarks.floor import timed
from benchmarks.http_peer import MLX_LM
from benchmarks.systems import Answer, Request, System
from benchmarks.words import prompt

CALL_TOKENS = 32
"""Tokens of each answer: a call of a tool."""

CASE = "all turns"
LAST = Metric("first token, last turn", "ms")


def session(bench: Bench) -> Result:
    """
    W14: each turn's prompt is the prompt before it, the answer to that, and the result of a tool.

    Only the result is new: the answer before it has been fed to the model, its last token included.
    """
    model = bench.model("small")
    begun, turns, told = bench.size((1024, 16, 928), (64, 3, 33))
    end = begun + turns * told + (turns - 1) * CALL_TOKENS
    result = Result(f"A session that grows from {begun} to {end} tokens in {turns} turns, a tool's result in each")
    with bench.running(model) as systems:
        sides = {system.name: partial(_run, system, model, begun, turns, told) for system in systems}
        result.rows = bench.take_turns(CASE, sides, min(bench.rounds, 2))
    computed = result.find(CASE, COMPUTED, OURS)
    result.aim(COMPUTED.name, computed.values if computed else (), begun + turns * told)
    result.aim(f"{WALL.name}: ours / {MLX_LM}", result.ratios(CASE, WALL, OURS, MLX_LM), 1.0)
    return result


def _run(system: System, model: Path, begun: int, turns: int, told: int, seed: str) -> Figures:
    """Run a session once."""
    answers: list[Answer] = []

    def run() -> None:
        text = prompt(seed, begun)
        for turn in range(turns):
            text += prompt(f"{seed}/{turn}", told)
            answer = system.ask(Request(model, text, CALL_TOKENS))
            answers.append(answer)
            text += " " + answer.text.strip()

    wall = timed(run)
    figures = {FIRST_TOKEN: median(answer.first_token for answer in answers), LAST: answers[-1].first_token, WALL: wall}
    if all(answer.cached_tokens is not None for answer in answers):
        figures[COMPUTED] = sum(answer.prompt_tokens - (answer.cached_tokens or 0) for answer in answers)
    return figures
