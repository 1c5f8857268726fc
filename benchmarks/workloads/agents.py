"""Workload "agents": concurrent conversations that share a system prompt and grow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.bench import Bench, Figures
from benchmarks.figures import COMPUTED, FIRST_TOKEN, OURS, WALL, Result
from benchmarks.floor import timed
from benchmarks.http_peer import MLX_LM
from benchmarks.systems import Answer, Request, System
from benchmarks.words import prompt

NEW_TOKENS, REPLY_TOKENS = 64, 32
CASE = "all turns"


@dataclass(frozen=True, slots=True)
class Session:
    """Concurrent clients. Each sends its next turn as soon as it has an answer, with that answer in its prompt."""

    model: Path
    clients: int
    turns: int
    shared: int

    def run(self, system: System, seed: str) -> Figures:
        """Run all turns of all clients once."""
        answers: list[Answer] = []

        def agent(number: int) -> None:
            text = prompt(seed, self.shared)
            for turn in range(self.turns):
                text += prompt(f"{seed}/{number}/{turn}", NEW_TOKENS)
                answer = system.ask(Request(self.model, text, REPLY_TOKENS))
                answers.append(answer)
                text += " " + answer.text.strip()

        with ThreadPoolExecutor(self.clients) as pool:
            wall = timed(lambda: list(pool.map(agent, range(self.clients))))
        figures = {FIRST_TOKEN: median(answer.first_token for answer in answers), WALL: wall}
        if all(answer.cached_tokens is not None for answer in answers):
            figures[COMPUTED] = sum(answer.prompt_tokens - (answer.cached_tokens or 0) for answer in answers)
        return figures


def agents(bench: Bench) -> Result:
    """W3: 8 clients, 6 turns, answers of 32 tokens, 64 new tokens in each turn."""
    session = Session(bench.model("small"), *bench.size((8, 6, 1536), (2, 2, 64)))
    result = Result(
        f"Agents: {session.clients} clients, {session.turns} turns each, one system prompt of {session.shared} tokens"
    )
    with bench.running(session.model) as systems:
        sides = {system.name: partial(session.run, system) for system in systems}
        result.rows = bench.take_turns(CASE, sides, min(bench.rounds, 2))
    result.aim(f"first token: ours / {MLX_LM}", result.ratios(CASE, FIRST_TOKEN, OURS, MLX_LM), 0.5)
    result.aim(f"{WALL.name}: ours / {MLX_LM}", result.ratios(CASE, WALL, OURS, MLX_LM), 0.5)
    return result
