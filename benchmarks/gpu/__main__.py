"""
What changes on a GPU: exactness and throughput of the engine in one process.

    python -m benchmarks.gpu [--shape NAME] [--out FILE]

The model has random weights in a real shape, and runs on MLX's default device. For each dtype, the same prompt runs
twice without the prefix cache, then with an empty and with a filled cache, and tokens and log-probabilities are
compared. Then the throughput of 1 to 16 concurrent requests is measured, and that of mlx-lm's own loop.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks import shapes
from benchmarks.gpu import engine
from daemon.engine.device import device_name
from mlx_sidecar.v1 import sidecar_pb2 as pb
from tests.unit.engine import harness

ROWS = (1, 4, 8, 16)
DTYPES = ("float32", "bfloat16")


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
            model = shapes.write(Path(folder) / name, arguments.shape, dtype=name)
            report[name] = measured(model, arguments.prompt_tokens)
            print(f"{name}: {json.dumps(report[name])}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def measured(model: Path, prompt_tokens: int) -> dict[str, object]:
    """Return all figures of one model."""
    running = harness.Harness(max_batch=max(ROWS))
    try:
        running.run(pb.GetOrLoadRequest(model=str(model)))
        found = engine.exactness(running, str(model), prompt_tokens)
        rates = {rows: round(engine.rate(running, str(model), rows), 1) for rows in ROWS}
    finally:
        running.close()
    plain = round(engine.plain_rate(model), 1)
    return {"exactness": asdict(found), "tokens_per_second": rates, "plain_mlx_lm": plain}


if __name__ == "__main__":
    harness.PATIENCE = 300.0
    sys.exit(main())
