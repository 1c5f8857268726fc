"""Workload "fairness": gaps between tokens of running streams during the prefill of a long prompt."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

from benchmarks.bench import Bench, Figures
from benchmarks.figures import FIRST_TOKEN, OURS, Metric, Result
from benchmarks.systems import Answer, Request, System
from benchmarks.words import prompt

P50, P99, SOLO = Metric("gap, p50", "ms"), Metric("gap, p99", "ms"), Metric("gap alone, p50", "ms")
LONGEST = Metric("gap, longest", "ms")
CHUNK_MS = 250
"""Longest prefill chunk that the daemon promises."""


@dataclass(frozen=True, slots=True)
class Intrusion:
    """Running streams, and a long prompt that arrives while they decode."""

    model: Path
    streams: int
    tokens: int
    long: int

    def run(self, system: System, seed: str) -> Figures:
        """Run it once. Gaps count if they overlap the time from the long prompt's sending to its first token."""
        solo = system.ask(self._stream(seed, 0, self.tokens // 4)).gaps
        with ThreadPoolExecutor(self.streams) as pool:
            running = [pool.submit(system.ask, self._stream(seed, n + 1, self.tokens)) for n in range(self.streams)]
            # Long enough that all streams decode, short enough that none has ended.
            threading.Event().wait(median(solo) * self.streams * self.tokens / 8 / 1000)
            intruder = system.ask(Request(self.model, prompt(seed + "/long", self.long), 2))
            answers = [future.result() for future in running]
        gaps = [gap for answer in answers for gap in _gaps_during(answer, intruder)]
        figures = {SOLO: median(solo), FIRST_TOKEN: intruder.first_token}
        if len(gaps) > 1:
            figures |= {P50: median(gaps), P99: quantiles(gaps, n=100, method="inclusive")[98], LONGEST: max(gaps)}
        return figures

    def _stream(self, seed: str, number: int, tokens: int) -> Request:
        return Request(self.model, prompt(f"{seed}/{number}", 32), tokens)


def fairness(bench: Bench) -> Result:
    """W11: 4 streams and a prompt of 4,096 tokens."""
    intrusion = Intrusion(bench.model("small"), *bench.size((4, 400, 4096), (2, 60, 64)))
    case = f"{intrusion.streams} streams, {intrusion.long} tokens come"
    result = Result("Fairness: gaps of running streams while a long prompt is computed")
    with bench.running(intrusion.model) as systems:
        sides = {system.name: partial(intrusion.run, system) for system in systems}
        result.rows = bench.take_turns(case, sides, min(bench.rounds, 3))
    worst, solo = result.find(case, P99, OURS), result.find(case, SOLO, OURS)
    if worst and solo:
        result.aim("gap p99, ms; at most 3 steps alone and a chunk", worst.values, 3 * solo.median + CHUNK_MS)
    return result


def _gaps_during(answer: Answer, intruder: Answer) -> list[float]:
    began, ended = intruder.sent, intruder.arrivals[0]
    overlapping = [pair for pair in pairwise(answer.arrivals) if pair[1] > began and pair[0] < ended]
    return [1000 * (after - before) for before, after in overlapping]
