"""
Exactness and throughput of the engine in one process: `python -m benchmarks.gpu [--shape NAME] [--out FILE]`.

The model has random weights in a real shape, and runs on MLX's default device. For each dtype, the same prompt runs
twice without the prefix cache, then with an empty and with a filled cache, and tokens and log-probabilities are
compared. Then the throughput of 1 to 16 concurrent requests is measured, and that of mlx-lm's own loop.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

from benchmarks import shapes
from daemon.engine.device import device_name
from daemon.engine.outbox import ends_call
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine import harness

ROWS = (1, 4, 8, 16)
ANSWER_TOKENS = 64
RATE_TOKENS = 256
SHORT_PROMPT = 64
LARGEST_ID = 500
"""Largest token id in prompts; every shape's vocabulary has it."""
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


@dataclass(frozen=True, slots=True)
class Exactness:
    """
    Cold and warm answers to one prompt.

    Attributes:
        cached: Prompt tokens that the warm run reused.
        same_cold: Whether two cold runs gave the same tokens.
        same_warm: Whether the warm run gave the tokens of the cold run.
        most_apart: The largest difference between cold and warm log-probabilities of equal tokens.
        cold_seconds, warm_seconds: Time to the first token.
    """

    cached: int
    same_cold: bool
    same_warm: bool
    most_apart: float
    cold_seconds: float
    warm_seconds: float


def main() -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", default="0.6b", choices=shapes.SHAPES, help="which model")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="of the weights; may be repeated")
    parser.add_argument(
        "--prompt-tokens", type=int, default=2048, help="length of the prompt that is asked cold and warm"
    )
    parser.add_argument("--out", type=Path, help="where the figures go as JSON")
    arguments = parser.parse_args()
    report: dict[str, object] = {"device": device_name(), "mlx": version("mlx"), "shape": arguments.shape}
    with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as folder:
        for name in arguments.dtype or DTYPES:
            model = _written(Path(folder) / name, arguments.shape, DTYPES[name])
            report[name] = measured(model, arguments.prompt_tokens)
            print(f"{name}: {json.dumps(report[name])}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def measured(model: Path, prompt_tokens: int) -> dict[str, object]:
    """Return all figures of one model."""
    engine = harness.Harness(max_batch=max(ROWS))
    try:
        engine.run(pb.GetOrLoadRequest(model=str(model)))
        found = exactness(engine, str(model), prompt_tokens)
        rates = {rows: round(rate(engine, str(model), rows), 1) for rows in ROWS}
    finally:
        engine.close()
    return {"exactness": asdict(found), "tokens_per_second": rates, "plain_mlx_lm": round(plain_rate(model), 1)}


def exactness(engine: harness.Harness, model: str, prompt_tokens: int) -> Exactness:
    """Compare cold and warm answers to the same prompt."""

    def ask(mode: pb.CacheMode) -> tuple[harness.Answer, float]:
        request = pb.GenerateRequest(
            model=model, tokens=_prompt(0, prompt_tokens), max_tokens=ANSWER_TOKENS, top_logprobs=1
        )
        request.stop.ignore_eos = True
        request.cache.mode = mode
        answer = harness.Answer(engine.finish(engine.begin(request)))
        return answer, answer.finished.timings.first_token.ToNanoseconds() / 1e9

    ask(pb.CACHE_MODE_BYPASS)  # kernels are compiled here
    (cold, cold_seconds), (again, _) = ask(pb.CACHE_MODE_BYPASS), ask(pb.CACHE_MODE_BYPASS)
    ask(pb.CACHE_MODE_READ_WRITE)
    ask(pb.CACHE_MODE_READ_WRITE)
    warm, warm_seconds = ask(pb.CACHE_MODE_READ_WRITE)
    apart = [
        abs(before.logprob - after.logprob)
        for before, after in zip(cold.logprobs, warm.logprobs, strict=True)
        if before.token_id == after.token_id
    ]
    return Exactness(
        warm.cached, cold.ids == again.ids, cold.ids == warm.ids, max(apart, default=0.0), cold_seconds, warm_seconds
    )


def rate(engine: harness.Harness, model: str, rows: int) -> float:
    """Return the throughput of concurrent requests in tokens per second, from the last request's first token on."""

    def once() -> float:
        engine.events.clear()
        for row in range(rows):
            request = pb.GenerateRequest(model=model, tokens=_prompt(row, SHORT_PROMPT), max_tokens=RATE_TOKENS)
            request.stop.ignore_eos = True
            request.cache.mode = pb.CACHE_MODE_BYPASS
            engine.begin(request)
        tokens, began, started, ended = 0, 0.0, set[int](), 0
        while ended < rows:
            engine.step()
            events, engine.events = engine.events, []
            if len(started) == rows:
                tokens += sum(len(event.generate.delta.token_ids) for event in events)
            else:
                started |= {event.call_id for event in events if event.generate.HasField("delta")}
                began = time.perf_counter()
            ended += sum(map(ends_call, events))
        return tokens / (time.perf_counter() - began)

    once()
    return once()


def plain_rate(path: Path) -> float:
    """Return the tokens per second of mlx-lm's model in a greedy loop."""
    model, _ = load(str(path))
    cache = make_prompt_cache(model)
    token = mx.argmax(model(mx.array([list(_prompt(0, SHORT_PROMPT).ids)]), cache=cache)[:, -1], axis=-1)
    for count in range(RATE_TOKENS + 32):
        if count == 32:
            mx.eval(token)
            began = time.perf_counter()
        following = mx.argmax(model(token[:, None], cache=cache)[:, -1], axis=-1)
        mx.async_eval(following)
        token.item()
        token = following
    return RATE_TOKENS / (time.perf_counter() - began)


def _prompt(salt: int, tokens: int) -> pb.TokenIds:
    return pb.TokenIds(ids=[1 + (salt * 7919 + index * 31) % LARGEST_ID for index in range(tokens)])


def _written(folder: Path, shape: str, dtype: mx.Dtype) -> Path:
    """Write a model of a shape in a dtype."""
    path = shapes.write(folder, shape)
    file = str(path / "model.safetensors")
    weights: dict[str, mx.array] = mx.load(file)  # type: ignore[assignment]
    converted = {name: array.astype(dtype) for name, array in weights.items()}
    mx.eval(list(converted.values()))
    mx.save_safetensors(file, converted, {"format": "mlx"})
    return path


if __name__ == "__main__":
    harness.PATIENCE = 300.0
    sys.exit(main())
