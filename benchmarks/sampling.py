"""
What a draw of a token takes with the options that models recommend: `python -m benchmarks.sampling [--rounds N]`.

Ours and mlx-lm's sampler draw in turn from the same logits of a large vocabulary. The figures are medians, and the
ratio of both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import make_sampler

from benchmarks import machine
from benchmarks.page import RESULTS
from daemon.engine.execution.request import SamplingParams
from daemon.engine.execution.sampling import Sampler

VOCAB = 151_936
"""That of Qwen3."""
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "Llama 3": {"temperature": 0.6, "top_p": 0.9},
    "Qwen3": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "Gemma 3": {"temperature": 1.0, "top_p": 0.95, "top_k": 64},
}
"""Options, by what recommends them."""


def main() -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="draws of each side")
    parser.add_argument("--out", type=Path, default=RESULTS / "sampling.json", help="where the figures go")
    arguments = parser.parse_args()
    logits = 3 * mx.random.normal((1, VOCAB), key=mx.random.key(1))
    rows = []
    for case, options in CASES.items():
        ours, theirs = _seconds(logits, options, arguments.rounds)
        rows.append({"case": case, "ours": ours, "mlx_lm": theirs, "ratio": ours / theirs})
        print(f"{case}: {1000 * ours:.2f} ms, mlx-lm {1000 * theirs:.2f} ms, {ours / theirs:.2f} x", flush=True)
    content = {"benchmark": "sampling", **machine.describe(), "vocab": VOCAB, "draws": rows}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")
    return 0


def _seconds(logits: mx.array, options: dict[str, Any], rounds: int) -> tuple[float, float]:
    """Return the median times of a draw: ours, and mlx-lm's."""
    sampler = Sampler(SamplingParams(**options, seed=1), (), VOCAB, logprobs=False)
    other = make_sampler(options["temperature"], options.get("top_p", 0.0), top_k=options.get("top_k", 0))

    def theirs() -> None:
        mx.eval(other(logits - mx.logsumexp(logits, axis=-1, keepdims=True)))

    sides: list[Callable[[], object]] = [lambda: sampler(logits).id, theirs]
    taken: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for side, times in zip(sides, taken, strict=True):
            began = time.perf_counter()
            side()
            times.append(time.perf_counter() - began)
    own, others = (median(times[1:]) for times in taken)
    return own, others


if __name__ == "__main__":
    raise SystemExit(main())
