"""Workload "kv-bytes": bytes of stored KV for conversations that share a prefix."""

from __future__ import annotations

import re

from benchmarks.bench import Bench
from benchmarks.figures import OURS, Metric, Result, Row
from benchmarks.http_peer import HttpPeer, StartsMlxLm
from benchmarks.sidecar import Sidecar, StartsSidecar
from benchmarks.systems import Request, StartsSystem, System
from benchmarks.words import prompt

KEPT = Metric("KV kept", "MB")
UNIQUE = "unique tokens"
SUFFIX = 64


def kv_bytes(bench: Bench) -> Result:
    """W6: 1 to 32 conversations over one prefix, against the KV bytes of their distinct tokens."""
    most, shared = bench.size((32, 2048), (2, 64))
    result = Result(f"KV bytes: 1 to {most} conversations over one prefix of {shared} tokens")
    model = bench.model("small")
    # The peer stores 10 conversations by default; here it must store all of them.
    starters: list[StartsSystem] = [StartsSidecar(), StartsMlxLm(flags=("--prompt-cache-size", str(2 * most)))]
    with bench.running(model, starters=starters) as systems:
        for number in range(1, most + 1):
            request = Request(model, prompt("shared", shared) + prompt(f"{number}", SUFFIX), 2)
            for system in systems:
                system.ask(request)
            if number & (number - 1) == 0:
                result.rows += [Row(_case(number), KEPT, system.name, (_kept(system, request),)) for system in systems]
                unique = (shared + number * (SUFFIX + 1)) * _token_megabytes(systems)
                result.rows.append(Row(_case(number), KEPT, UNIQUE, (unique,)))
    result.aim("ours / unique", result.ratios(_case(most), KEPT, OURS, UNIQUE), 1.05)
    return result


def _case(number: int) -> str:
    return f"{number} conversation{'s' * (number > 1)}"


def _token_megabytes(systems: list[System]) -> float:
    sidecar = next(system for system in systems if isinstance(system, Sidecar))
    return next(model.info.kv_bytes_per_token for model in sidecar.client.stats().models) / 1e6


def _kept(system: System, last: Request) -> float:
    """Return the MB of KV that a system reports. mlx_lm.server reports it in its log, at the next request."""
    if isinstance(system, Sidecar):
        return system.client.stats().prefix_cache.bytes / 1e6
    assert isinstance(system, HttpPeer)
    system.ask(last)
    gigabytes = re.findall(r"Prompt Cache: \d+ sequences, ([\d.]+) GB", system.log.read_text())
    return 1000 * float(gigabytes[-1])
