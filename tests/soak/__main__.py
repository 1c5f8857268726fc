"""
Measures a daemon's memory under a steady, varied load without faults: `python -m tests.soak --minutes 30`.

Four clients repeat prompts, bring new ones, cancel (unless `--no-cancels`: gRPC keeps something of cancelled calls, see
docs/evidence.md), and drop prefixes; the prefix cache is small enough to evict all the time. Every second it is
noted what the parent's malloc has given out, and the private memory of the engine. Status 1: a slope after the warm-up
(see `fit.slope`) is above 1 MB an hour and its 95 % interval does not reach zero. Status 3: too short a run to tell.
Status 0: neither grows by 1 MB an hour.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mlx_sidecar import Client
from tests.soak.fit import Slope, slope
from tests.support.daemons import RunningDaemon
from tests.support.leak_counter import counting_command, counts_of
from tests.support.process_usage import resident_bytes

CLIENTS = 4
SAMPLE_SECONDS = 1.0

Samples = dict[str, list[tuple[float, int]]]


def use(daemon: RunningDaemon, seed: int, over: threading.Event, *, cancels: bool) -> None:
    """Be one client until it is over."""
    rng = random.Random(seed)
    with daemon.client() as client:
        while not over.is_set():
            _use_once(client, rng, cancels=cancels)


def _use_once(client: Client, rng: random.Random, *, cancels: bool) -> None:
    habit = rng.random()
    # A few prompts come back, most are new: blocks are stored, reused and evicted throughout.
    pick = random.Random(rng.randrange(20) if habit < 0.3 else rng.getrandbits(64))
    prompt = [pick.randrange(10, 700) for _ in range(pick.randrange(20, 600))]
    salt = rng.choice(["", "a"])
    if habit < 0.9 or (habit < 0.98 and not cancels):
        seed = rng.getrandbits(32) if habit < 0.5 else None
        options: dict[str, Any] = {} if seed is None else {"temperature": 0.8, "seed": seed}
        client.complete("embedded", prompt, max_tokens=rng.randrange(1, 60), salt=salt, **options)
    elif habit < 0.98:
        with client.generate("embedded", prompt, max_tokens=2000, ignore_eos=True) as stream:
            for _ in islice(stream, rng.randrange(1, 20)):  # a reader that lags gets all of it in fewer
                pass
    else:
        client.invalidate_prefix("embedded", prompt[:16], salt=salt)


def measure(seconds: float, seed: int, *, cancels: bool = True) -> Samples:
    """Run the load for so long and return what was sampled."""
    folder = Path(tempfile.mkdtemp(prefix="mlxs-", dir="/tmp"))
    daemon = RunningDaemon.start(
        folder, counting_command(folder, "daemon", "serve"), kv_cache_mb="8", log_level="warning"
    )
    over = threading.Event()
    behave = partial(use, daemon, over=over, cancels=cancels)
    clients = [threading.Thread(target=behave, args=[seed + number]) for number in range(CLIENTS)]
    try:
        with daemon.client() as client:
            client.load("embedded")
            for thread in clients:
                thread.start()
            samples = _sample(client, daemon, seconds, clients)
    finally:
        over.set()
        for thread in clients:
            if thread.ident:
                thread.join()
        status = daemon.stop()
        shutil.rmtree(folder)
    assert status == 0
    return samples


def _sample(client: Client, daemon: RunningDaemon, seconds: float, clients: Sequence[threading.Thread]) -> Samples:
    """
    Note memory for so long.

    MLX keeps buffers that are free for its next use, up to a limit that the engine sets (a twentieth of its ceiling). A
    run fills that store bit by bit for as long as new sizes come up; it is no leak, and is taken off.
    """
    began = time.monotonic()
    samples: Samples = {"parent": [], "engine": []}
    while (now := time.monotonic() - began) < seconds:
        assert all(thread.is_alive() for thread in clients), "a client failed"
        stats = client.stats()
        samples["parent"].append((now, counts_of(daemon)["bytes"]))
        samples["engine"].append((now, resident_bytes(stats.engine.pid) - stats.memory.cache_bytes))
        time.sleep(min(SAMPLE_SECONDS, seconds / 200))
    return samples


def slopes(samples: Samples) -> dict[str, Slope]:
    """Return the growth of each process."""
    return {name: slope(values) for name, values in samples.items()}


def main() -> int:
    """Run the load and judge."""
    parser = argparse.ArgumentParser(prog="soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cancels", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    samples = measure(60 * arguments.minutes, arguments.seed, cancels=arguments.cancels)
    found = slopes(samples)
    for name, growth in found.items():
        tenths = [f"{samples[name][len(samples[name]) * tenth // 10][1] / 1e6:.1f}" for tenth in range(10)]
        sys.stdout.write(f"{name}: {growth}; MB at each tenth of the run: {' '.join(tenths)}\n")
    if any(growth.leaks for growth in found.values()):
        return 1
    return 0 if all(growth.conclusive for growth in found.values()) else 3


if __name__ == "__main__":
    sys.exit(main())
