"""Workload "startup": time until a daemon serves, and its memory before the first request."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from benchmarks.bench import Bench, Figures
from benchmarks.figures import OURS, Metric, Result
from benchmarks.http_peer import MLX_LM, StartsMlxLm
from benchmarks.machine import resident_bytes
from benchmarks.sidecar import SERVICE, Sidecar

LISTENS, SERVES = Metric("health answers", "ms"), Metric("serves", "ms")
WARM = Metric("has loaded its libraries", "ms")
PARENT, ENGINE, ALL = Metric("memory, parent", "MB"), Metric("memory, empty engine", "MB"), Metric("memory", "MB")
CASE = "no request yet"


def startup(bench: Bench) -> Result:
    """
    W12: times from the start of the process.

    Our daemon serves before its engine has imported its libraries, and calls wait for these. mlx_lm.server cannot start
    without a model, and gets a trivial one.
    """
    result = Result("Start, and memory before the first request")
    sides: dict[str, Callable[[str], Figures]] = {OURS: partial(_ours, bench)}
    if any(start.name == MLX_LM for start in bench.starters):
        sides[MLX_LM] = partial(_theirs, bench)
    result.rows = bench.take_turns(CASE, sides)
    for metric, bound in ((SERVES, 1000.0), (PARENT, 80.0)):
        row = result.find(CASE, metric, OURS)
        result.aim(f"{metric.name}, {metric.unit}", row.values if row else (), bound)
    return result


def _ours(bench: Bench, seed: str) -> Figures:
    began = time.perf_counter()
    sidecar = Sidecar(bench.folder / seed.replace(" ", "-").replace("/", "-"))
    try:
        sidecar.wait("")
        listens = time.perf_counter()
        sidecar.wait(SERVICE)
        serves = time.perf_counter()
        sidecar.wait_until_warm()
        warm = time.perf_counter()
        parent, engine = (resident_bytes([pid]) / 1e6 for pid in sidecar.pids())
    finally:
        sidecar.close()
    ends = {LISTENS: listens, SERVES: serves, WARM: warm}
    times = {metric: 1000 * (end - began) for metric, end in ends.items()}
    return {**times, PARENT: parent, ENGINE: engine, ALL: parent + engine}


def _theirs(bench: Bench, seed: str) -> Figures:
    began = time.perf_counter()
    peer = StartsMlxLm()(bench.folder / "start", [bench.model("trivial")])
    try:
        serves = time.perf_counter()
        return {SERVES: 1000 * (serves - began), ALL: resident_bytes(peer.pids()) / 1e6}
    finally:
        peer.close()
