"""
The steps of a run on a GPU, each a process: `python -m benchmarks.gpu.steps NAME --out FOLDER --models FOLDER`.

A step measures with the workloads of `python -m benchmarks`, in other sizes. After each of its cases it writes all
figures so far, as NAME.json and as a table, NAME.md; a step that is ended early has lost its last case alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import machine, page, shapes
from benchmarks.bench import Bench
from benchmarks.figures import FIRST_TOKEN, MORE, OURS, Metric, Result, Row
from benchmarks.floor import Floor
from benchmarks.gpu import engine
from benchmarks.http_peer import MLX_LM, StartsMlxLm
from benchmarks.sidecar import StartsSidecar
from benchmarks.systems import System
from benchmarks.workloads.fairness import LONGEST, Intrusion
from benchmarks.workloads.guesses import compare, loaded
from benchmarks.workloads.prefix import SUFFIX, pairs_of
from benchmarks.workloads.readers import DECODE, Readers
from benchmarks.written import TEXTS
from daemon.engine.device import device_name
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine import harness
from tests.unit.engine.harness import Harness

LARGE = "1.7b"
RECURRENT = 600
"""Tokens of a prompt of a hybrid model: mlx-lm has kernels for recurrent layers on Metal alone."""
REUSED, READ_TOGETHER = (
    Metric("prompt tokens reused", "tokens", MORE),
    Metric("read one copy of a prefix", "rows", MORE),
)
AGAIN, WARM, TOGETHER = (
    Metric(f"{what} has the tokens of a cold one", "1 is yes", MORE)
    for what in ("another cold answer", "a warm answer", f"each of {engine.NEIGHBOURS} answers at once")
)
APART, APART_TOGETHER = (
    Metric(f"log-probabilities apart, {what}", "millionths") for what in ("warm", "several at once")
)
SELF_TESTS = Metric("self-tests that failed", "warnings")


@dataclass
class KeptModels(Bench):
    """
    A bench whose models stay for the next step.

    Attributes:
        models: Folder of the models.
    """

    models: Path = field(kw_only=True)

    def model(self, shape: str) -> Path:
        """Return the directory of a model of a shape, which is complete if it is there."""
        path = self.models / shape
        if not path.exists():
            self.models.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.models) as unfinished:
                shapes.write(Path(unfinished), shape, tiny=self.quick).rename(path)
        return path


def exact(shape: str, bench: Bench) -> Iterator[Result]:
    """Compare cold and warm answers, and answers of several requests at once, after the self-tests of a load."""
    os.environ["MLX_ENABLE_TF32"] = "0"  # with TF32, products of float32 round to ten bits, and each shape otherwise
    result = Result(f"Exactness: {shape}")
    model = str(bench.model(shape))
    running = Harness(kv_disk_mb=0)
    tokens = bench.size(RECURRENT if shape == "hybrid" else 2048, 600)
    try:
        loaded = running.run(pb.GetOrLoadRequest(model=model)).info
        for warning in loaded.warnings:
            bench.left_out.append(f"{shape}: the load warns: {warning}")
        found = engine.exactness(running, model, tokens)
        _add(result, f"{shape}, {tokens} tokens", SELF_TESTS, len(loaded.warnings))
        _add(result, f"{shape}, {tokens} tokens", REUSED, found.cached)
        _add(result, f"{shape}, {tokens} tokens", AGAIN, found.same_cold)
        _add(result, f"{shape}, {tokens} tokens", WARM, found.same_warm)
        _add(result, f"{shape}, {tokens} tokens", APART, 1e6 * found.most_apart)
        yield result
        several = engine.together(running, model, tokens)
        _add(result, f"{shape}, {tokens} tokens", TOGETHER, several.same == engine.NEIGHBOURS)
        _add(result, f"{shape}, {tokens} tokens", READ_TOGETHER, several.readers)
        _add(result, f"{shape}, {tokens} tokens", APART_TOGETHER, 1e6 * several.most_apart)
        yield result
    finally:
        running.close()


def serving(bench: Bench) -> Iterator[Result]:
    """Measure servers side by side. They start once: on a GPU a start compiles kernels, which takes half a minute."""
    model = bench.model(LARGE)
    with bench.running(model) as systems:
        yield from _readers(bench, systems, model)
        yield from _first_tokens(bench, systems, model)
        yield from _gap(bench, systems, model)


def _readers(bench: Bench, systems: list[System], model: Path) -> Iterator[Result]:
    """Measure streams that read one long prefix."""
    result = Result("Readers: streams on a long prefix that was computed before")
    prefix_tokens, tokens = bench.size((8192, 160), (600, 8))
    for streams in bench.size((1, 8, 5), (2,)):
        case = Readers(model, prefix_tokens, streams, tokens)
        sides = {system.name: partial(case.run, system) for system in systems}
        result.rows += bench.take_turns(case.case, sides, min(bench.rounds, 2))
        if streams > 1:
            ratios = result.ratios(case.case, DECODE, OURS, MLX_LM)
            result.aim(f"{case.case}: decode, ours / {MLX_LM}", ratios, 2.5 if streams == 8 else 1.5, MORE)
        yield result


def _first_tokens(bench: Bench, systems: list[System], model: Path) -> Iterator[Result]:
    """Measure a cold and a warm first token for each length."""
    result = Result(f"First token, cold; then warm: a known prefix and {SUFFIX} new tokens")
    floor = Floor(model)
    for tokens, rounds in bench.size(((2048, 3), (8192, 2), (32768, 1)), ((64, 1),)):
        rows = pairs_of(bench, systems, (model, floor), tokens, rounds)
        result.rows += rows
        result.aim(f"{rows[0].case}: ours / {MLX_LM}", result.ratios(rows[0].case, FIRST_TOKEN, OURS, MLX_LM), 0.8)
        yield result


def _gap(bench: Bench, systems: list[System], model: Path) -> Iterator[Result]:
    """Measure the gaps of a running stream while a long prompt is computed."""
    intrusion = Intrusion(model, *bench.size((1, 300, 16384), (1, 60, 200)))
    result = Result("Fairness: gaps of a running stream while a long prompt is computed")
    case = f"1 stream, {intrusion.long} tokens come"
    sides = {system.name: partial(intrusion.run, system) for system in systems}
    result.rows = bench.take_turns(case, sides, min(bench.rounds, 2))
    result.aim(f"{case}: longest gap, ours / {MLX_LM}", result.ratios(case, LONGEST, OURS, MLX_LM), 1.0)
    yield result


def guesses(bench: Bench) -> Iterator[Result]:
    """Measure tokens guessed ahead beside none, in this process: a peer has no such thing for given texts."""
    model = bench.model(LARGE)
    result = Result("Tokens guessed ahead, one request and four at once")
    bench.rounds = 1  # six cases of three sides: more has no time
    with loaded(model) as sides:
        for text in TEXTS:
            compare(bench, result, sides, (LARGE, text), bench.size(160, 24))
            yield result


STEPS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    **{f"exact-{shape}": partial(exact, shape) for shape in ("small", "hybrid", "window", LARGE)},
    "serving": serving,
    "guesses": guesses,
}


def main() -> int:
    """Run a step, or show the machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.steps", description=__doc__)
    parser.add_argument(
        "step", choices=(*STEPS, "machine"), help="what is measured; machine: what this run computes on"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--models", type=Path, required=True, help="folder of the models, which stay")
    parser.add_argument("--rehearse", action="store_true", help="tiny models and lengths, one round")
    arguments = parser.parse_args()
    # As an exception, SIGTERM runs the blocks that end the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.step == "machine":
        described = {"device": device_name(), **machine.describe()}
        (arguments.out / "machine.json").write_text(json.dumps(described) + "\n")
        return 0
    harness.PATIENCE = 300.0
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as folder:
        bench = KeptModels(
            Path(folder),
            [StartsSidecar(), StartsMlxLm()],
            1 if arguments.rehearse else 3,
            arguments.rehearse,
            models=arguments.models,
        )
        results: dict[str, Result] = {}
        for result in STEPS[arguments.step](bench):
            results[result.title] = result
            _write(arguments.out, arguments.step, list(results.values()), bench.left_out)
    return 0


def _add(result: Result, case: str, metric: Metric, value: float) -> None:
    result.rows.append(Row(case, metric, OURS, (float(value),)))


def _write(out: Path, name: str, results: list[Result], left_out: list[str]) -> None:
    """Write the figures so far; a reader sees the old file or the new one."""
    figures = json.dumps({"results": [result.raw for result in results], "left_out": left_out}, indent=1)
    for path, text in ((out / f"{name}.md", "\n".join(map(_table, results))), (out / f"{name}.json", figures)):
        unfinished = path.with_suffix(".new")
        unfinished.write_text(text + "\n")
        os.replace(unfinished, path)


def _table(result: Result) -> str:
    targets = [f"* {page.verdict(target)}" for target in result.targets]
    return "\n".join([f"### {result.title}", "", page.markdown(result), *([""] if targets else []), *targets, ""])


if __name__ == "__main__":
    sys.exit(main())
