"""
Benchmark of the model cache over the socket: `python -m benchmarks.models [--rounds N] [--layers N] [--out FILE]`.

It measures ratios within one run. The first are of a GetOrLoad hit to a Stats call, which has almost no work: for a
model with one file of weights, and for one with many, as each call looks at all of them. The other is of the gap
between a stream's deltas during the load of a large generated model to the gap before the load.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import cast

import mlx.core as mx
from tokenizers import Tokenizer

from benchmarks import machine
from benchmarks.page import RESULTS
from daemon.cache.digests import SETTLED_NS
from daemon.cache.resolver import EMBEDDED_PATH
from daemon.cache.weight_files import weight_files
from mlx_sidecar import Client
from tests.support.models import wide_model
from tools.demo import daemon

TOKENS = 2000
EMBEDDED = Tokenizer.from_file(str(EMBEDDED_PATH / "tokenizer.json"))
"""Tokenizer of the embedded model; the generated models have the same."""


@dataclass(frozen=True, slots=True)
class Hit:
    """Medians of alternating calls in seconds; `files` are the files of weights that the model has."""

    files: int
    get_or_load: float
    stats: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Gaps:
    """Seconds between two tokens of a stream, alone and during the digest and load of a model."""

    model_bytes: int
    load_seconds: float
    alone_median: float
    alone_most: float
    loading_median: float
    loading_most: float
    ratio_of_medians: float
    ratio_of_most: float


def main() -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--rounds", type=int, default=500, help="pairs of calls")
    parser.add_argument("--layers", type=int, default=40, help="layers of the model that is loaded, 52 MB each")
    parser.add_argument("--stream-layers", type=int, default=20, help="layers of the model that streams meanwhile")
    parser.add_argument("--out", type=Path, default=RESULTS / "models.json", help="where the figures go")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as folder,
        daemon(Path(folder)) as environ,
        Client(environ["MLX_SIDECAR_SOCKET"]) as client,
    ):
        parted = many_files(Path(folder) / "parted")
        hits = [measure_hit(client, str(model), arguments.rounds) for model in (EMBEDDED_PATH, parted)]
        streaming = str(wide_model(Path(folder), "streaming", 2, arguments.stream_layers))
        client.load(streaming)
        large = wide_model(Path(folder), "large", 1, arguments.layers, width=1024)
        os.sync()  # a user's model was written long ago; without this, the write of 2 GB would slow the load
        gaps = measure_gaps(client, streaming, str(large))
    for hit in hits:
        print(
            f"GetOrLoad hit of {hit.files} files {1000 * hit.get_or_load:.2f} ms, Stats {1000 * hit.stats:.2f} ms, "
            f"{hit.ratio:.1f} x"
        )
    print(
        f"stream gap alone {1000 * gaps.alone_median:.1f} ms, longest {1000 * gaps.alone_most:.1f} ms; "
        f"while {gaps.model_bytes / 1e6:.0f} MB load in {gaps.load_seconds:.1f} s: "
        f"median {gaps.ratio_of_medians:.1f} x, longest {gaps.ratio_of_most:.1f} x"
    )
    figures = {"hits": [asdict(hit) for hit in hits], "gaps": asdict(gaps)}
    arguments.out.write_text(json.dumps({"benchmark": "model cache", **machine.describe(), **figures}, indent=2) + "\n")
    return 0


def many_files(folder: Path) -> Path:
    """Write the embedded model with a file for each of its tensors, and return its folder once that has settled."""
    folder.mkdir()
    for file in EMBEDDED_PATH.glob("*.json"):
        shutil.copy(file, folder)
    weights: dict[str, mx.array] = {}
    for file in weight_files(EMBEDDED_PATH):
        weights.update(cast("dict[str, mx.array]", mx.load(str(file))))
    for number, (name, array) in enumerate(sorted(weights.items())):
        mx.save_safetensors(str(folder / f"model-{number:05}.safetensors"), {name: array}, metadata={"format": "mlx"})
    time.sleep(SETTLED_NS / 1e9)  # those that were written just now are read with each call
    return folder


def measure_hit(client: Client, model: str, rounds: int) -> Hit:
    """Alternate between a GetOrLoad hit of a model and Stats."""
    client.load(model)
    hits, travels = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        client.load(model)
        between = time.perf_counter()
        client.stats()
        hits.append(between - began)
        travels.append(time.perf_counter() - between)
    files = len(weight_files(Path(model)))
    return Hit(files, median(hits), median(travels), median(hits) / median(travels))


def measure_gaps(client: Client, streaming: str, model: str) -> Gaps:
    """Stream from one model, load a large model meanwhile, and compare the gaps between deltas before and during it."""
    times: list[float] = []
    window: list[float] = []
    under_way = threading.Event()

    def load() -> None:
        under_way.wait()
        window.append(time.perf_counter())
        client.load(model, skip_warmup=True)
        window.append(time.perf_counter())

    loading = threading.Thread(target=load)
    loading.start()
    # All tokens are one letter. Random tokens can be parts of a character, whose delta waits for the whole character.
    letter = {EMBEDDED.encode("a").ids[-1]: 100.0}
    with client.generate(streaming, "The", max_tokens=TOKENS, ignore_eos=True, logit_bias=letter) as stream:
        for _ in stream:
            times.append(time.perf_counter())
            if len(times) == 100:
                under_way.set()
            if len(window) == 2:
                break
    under_way.set()
    loading.join()
    began, ended = window
    alone = [after - before for before, after in pairwise(times) if after < began][20:]
    meanwhile = [after - before for before, after in pairwise(times) if began <= after and before <= ended]
    size = next(loaded.info.size_bytes for loaded in client.stats().models if loaded.info.model == model)
    usual = median(alone)
    return Gaps(
        model_bytes=size,
        load_seconds=ended - began,
        alone_median=usual,
        alone_most=max(alone),
        loading_median=median(meanwhile),
        loading_most=max(meanwhile),
        ratio_of_medians=median(meanwhile) / usual,
        ratio_of_most=max(meanwhile) / usual,
    )


if __name__ == "__main__":
    sys.exit(main())
