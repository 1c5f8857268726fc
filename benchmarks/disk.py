"""
Benchmark of the disk tier over the socket: `python -m benchmarks.disk [--lengths N ...] [--shapes NAME ...]`.

For each shape and length, a prefix is used twice, the daemon is killed, and a new one answers the prefix with another
end. The ratio is its time to a first token to that of the same request without reuse, in the same daemon.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import machine, shapes
from benchmarks.page import RESULTS
from mlx_sidecar import Client
from tests.support.daemons import RunningDaemon

SUFFIX = 16


@dataclass(frozen=True, slots=True)
class Row:
    """
    One prefix.

    Attributes:
        shape: The model.
        tokens: Tokens of the prefix.
        computed: Tokens that the first request after the restart computed.
        from_disk: Seconds to its first token.
        cold: Seconds to the first token of the same request without reuse.
        ratio: Of the two.
        disk_bytes: Bytes on the disk.
    """

    shape: str
    tokens: int
    computed: int
    from_disk: float
    cold: float
    ratio: float
    disk_bytes: int


def main() -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disk", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument("--shapes", nargs="*", default=["small", "window", "hybrid"])
    parser.add_argument("--out", type=Path, default=RESULTS / "disk.json", help="where the figures go")
    arguments = parser.parse_args()
    rows = []
    for shape in arguments.shapes:
        for tokens in arguments.lengths:
            with tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as folder:
                rows.append(measure(Path(folder), shape, tokens))
            row = rows[-1]
            print(
                f"{shape:8} {tokens:6} computed {row.computed:4} from disk {row.from_disk:.3f} s, cold {row.cold:.3f} s"
            )
            print(f"{'':15} ratio {row.ratio:.3f}, {row.disk_bytes / 1e6:.1f} MB", flush=True)
    figures = {"benchmark": "disk tier", **machine.describe(), "rows": [asdict(row) for row in rows]}
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(folder: Path, shape: str, tokens: int) -> Row:
    """Use a prefix twice, kill the daemon, and measure the first request of the next one."""
    model = str(shapes.write(folder / "model", shape))
    prefix = random.Random(tokens).choices(range(10, 900), k=tokens)
    daemon = RunningDaemon.start(folder)
    with daemon.client() as client:
        first_token(client, model, prefix)
        first_token(client, model, prefix)
        written(client)
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    subprocess.run(["sync"], check=False)
    again = RunningDaemon.start(folder)
    try:
        with again.client() as client:
            client.load(model)
            first_token(client, model, prefix[:100][::-1])
            longer = [*prefix, *range(20, 20 + SUFFIX)]
            from_disk, cached = first_token(client, model, longer, mode="read_only")
            cold, _ = first_token(client, model, longer, mode="bypass")
            nbytes = client.stats().prefix_cache.disk_bytes
    finally:
        again.stop()
    return Row(shape, tokens, len(longer) - cached, from_disk, cold, from_disk / cold, nbytes)


def first_token(client: Client, model: str, prompt: list[int], mode: str = "read_write") -> tuple[float, int]:
    """Return the seconds to the first token, and the tokens that were reused."""
    began = time.perf_counter()
    done = client.complete(model, prompt, max_tokens=1, ignore_eos=True, cache_mode=mode)  # type: ignore[arg-type]
    return time.perf_counter() - began, done.usage.cached_tokens


def written(client: Client) -> None:
    """Wait until nothing more is written."""
    before = -1
    while (now := client.stats().prefix_cache.disk_written_bytes) != before or not now:
        before = now
        time.sleep(1.5)


if __name__ == "__main__":
    sys.exit(main())
