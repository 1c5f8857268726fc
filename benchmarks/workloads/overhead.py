"""Workload "overhead": cost of a call and of a token with almost no work for the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.bench import Bench, Figures
from benchmarks.figures import FIRST_TOKEN, Metric, Result
from benchmarks.floor import IN_PROCESS, Floor, timed
from benchmarks.http_peer import HttpPeer
from benchmarks.sidecar import Sidecar
from benchmarks.systems import Request, System
from benchmarks.words import prompt

CALL = Metric("a call", "ms")
PER_TOKEN = Metric("a token", "ms")
HIT, TRAVEL, STREAM = "a loaded model is asked for", "a call that only travels", "a stream of a trivial model"


def overhead(bench: Bench) -> Result:
    """W7: GetOrLoad of a loaded model, Stats or GET /v1/models, and a stream of a model with one small layer."""
    result = Result("Overhead of a call and of a token")
    calls, tokens = bench.size((100, 400), (3, 6))
    model = bench.model("trivial")
    with bench.running(model) as systems:
        floor = Floor(model)
        hits = {
            s.name: partial(_calls, calls, partial(s.client.load, str(model)))
            for s in systems
            if isinstance(s, Sidecar)
        }
        travels = {s.name: partial(_calls, calls, _travel(s)) for s in systems}
        streams: dict[str, Callable[[str], Figures]] = {s.name: partial(_stream, s, model, tokens) for s in systems}
        streams[IN_PROCESS] = lambda seed: _in_process(floor, prompt(seed, 16), tokens)
        for case, sides in ((HIT, hits), (TRAVEL, travels), (STREAM, streams)):
            result.rows += bench.take_turns(case, sides)
    return result


def _travel(system: System) -> Callable[[], object]:
    if isinstance(system, Sidecar):
        return system.client.stats
    assert isinstance(system, HttpPeer)
    return partial(system.get, "/v1/models")


def _calls(number: int, call: Callable[[], object], seed: str) -> Figures:
    return {CALL: median(timed(call) for _ in range(number))}


def _stream(system: System, model: Path, tokens: int, seed: str) -> Figures:
    answer = system.ask(Request(model, prompt(seed, 16), tokens))
    spread = 1000 * (answer.arrivals[-1] - answer.arrivals[0])
    return {FIRST_TOKEN: answer.first_token, PER_TOKEN: spread / (answer.tokens - 1)}


def _in_process(floor: Floor, text: str, tokens: int) -> Figures:
    arrivals = [time.perf_counter(), *(time.perf_counter() for _ in floor.pieces(text, tokens))]
    return {
        FIRST_TOKEN: 1000 * (arrivals[1] - arrivals[0]),
        PER_TOKEN: 1000 * (arrivals[-1] - arrivals[1]) / (len(arrivals) - 2),
    }
