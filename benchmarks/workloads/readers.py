"""Workload "readers": streams that begin with the same long prefix, which was computed before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.bench import Bench, Figures
from benchmarks.figures import FIRST_TOKEN, MORE, OURS, Metric, Result
from benchmarks.http_peer import MLX_LM
from benchmarks.systems import Answer, Request, System, ask_all
from benchmarks.words import prompt

NEW_TOKENS = 32
DECODE = Metric("decode", "tokens/s", MORE)


@dataclass(frozen=True, slots=True)
class Readers:
    """Streams behind one prefix; each has an end of its own."""

    model: Path
    prefix: int
    streams: int
    tokens: int

    @property
    def case(self) -> str:
        """Its name in the table."""
        return f"{self.streams} streams, {self.prefix} tokens in common"

    def run(self, system: System, seed: str) -> Figures:
        """Compute the prefix, then run all streams at once."""
        common = prompt(seed, self.prefix)
        system.ask(Request(self.model, common + prompt(f"{seed}/first", NEW_TOKENS), 1))
        ends = [prompt(f"{seed}/{number}", NEW_TOKENS) for number in range(self.streams)]
        answers = ask_all(system, [Request(self.model, common + end, self.tokens) for end in ends])
        return {FIRST_TOKEN: median(answer.first_token for answer in answers), DECODE: _decoded(answers)}


def readers(bench: Bench) -> Result:
    """W13: streams on a long warm prefix."""
    model = bench.model("small")
    sizes = bench.size(((1400, 8), (8192, 5), (8192, 8)), ((64, 2),))
    result = Result("Readers: streams on a long prefix that was computed before")
    with bench.running(model) as systems:
        for prefix, streams in sizes:
            case = Readers(model, prefix, streams, bench.size(64, 8))
            sides = {system.name: partial(case.run, system) for system in systems}
            result.rows += bench.take_turns(case.case, sides, min(bench.rounds, 3))
            result.aim(f"{case.case}: ours / {MLX_LM}", result.ratios(case.case, DECODE, OURS, MLX_LM), 1.5, MORE)
    return result


def _decoded(answers: list[Answer]) -> float:
    """Return the tokens per second of all streams while all of them decode, or while any does if they never all do."""
    began = max(answer.arrivals[0] for answer in answers)
    ended = min(answer.arrivals[-1] for answer in answers)
    if ended <= began:
        began = min(answer.arrivals[0] for answer in answers)
        ended = max(answer.arrivals[-1] for answer in answers)
    tokens = sum(_tokens_within(answer, began, ended) for answer in answers)
    return tokens / (ended - began)


def _tokens_within(answer: Answer, began: float, ended: float) -> float:
    """Return how many tokens came in a time. Pieces of text are counted as so many tokens as an average one has."""
    pieces = sum(began < arrival <= ended for arrival in answer.arrivals)
    return pieces * answer.tokens / len(answer.arrivals)
