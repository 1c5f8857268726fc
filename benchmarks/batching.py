"""
Throughput of concurrent clients with and without batches: `python -m benchmarks.batching`.

Two daemons on the same model, one with `max_batch` 8 and one with 1, are driven in turn within one run.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks import machine
from benchmarks.page import RESULTS
from mlx_sidecar import Client
from tools.demo import daemon
from tools.embedded import corpus

CLIENTS = (1, 2, 4, 8)
TOKENS = 128
ROUNDS = 5


def main() -> int:
    """Measure, print a table, and write JSON."""
    prompts = [example.completion() for example in islice(corpus.held_out(seed=8, tokens_hint=200), max(CLIENTS))]
    rows = []
    with ExitStack() as stack:
        clients = [_client(stack, max_batch) for max_batch in (8, 1)]
        for number in CLIENTS:
            speeds: list[list[float]] = [[], []]
            for _ in range(ROUNDS + 1):
                for client, speed in zip(clients, speeds, strict=True):
                    speed.append(_tokens_per_second(client, prompts[:number]))
            batched, single = (median(speed[1:]) for speed in speeds)  # the first round warms both up
            rows.append({"clients": number, "batched": batched, "one_by_one": single, "ratio": batched / single})
            print(
                f"{number} clients: {batched:6.0f} tok/s in batches, {single:6.0f} one by one, {batched / single:.2f} x"
            )
    report = {"benchmark": "decode of several clients, tokens/s", "rounds": ROUNDS, **machine.describe(), "rows": rows}
    (RESULTS / "batching.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _client(stack: ExitStack, max_batch: int) -> Client:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp")))
    environ = stack.enter_context(daemon(folder, MLX_SIDECAR_MAX_BATCH=str(max_batch)))
    client = stack.enter_context(Client(environ["MLX_SIDECAR_SOCKET"]))
    client.load("embedded")
    return client


def _tokens_per_second(client: Client, prompts: list[str]) -> float:
    def ask(prompt: str) -> int:
        return client.complete("embedded", prompt, max_tokens=TOKENS, ignore_eos=True).usage.completion_tokens

    with ThreadPoolExecutor(len(prompts)) as pool:
        began = time.monotonic()
        tokens = sum(pool.map(ask, prompts))
        return tokens / (time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
