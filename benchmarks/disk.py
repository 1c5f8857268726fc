"""
Benchmark of the disk tier over the socket: `python -m benchmarks.disk [--lengths N ...] [--shapes NAME ...]`.

For each shape and length, two prefixes are used twice, the daemon is killed, and a new one answers the first of them
with another end. The ratio is its time to a first token to that of such a prefix without reuse, before the kill.
Some daemons are started one after the other, and figures are medians of them.

The restore is what a request with the second prefix takes beyond the same request out of memory: by then the daemon has
seen such a request. It is compared with `dd` of the same bytes in one file. The page cache holds neither of them: their
pages are dropped before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
    Two prefixes of one length.

    Attributes:
        shape: The model.
        tokens: Tokens of each.
        computed: Tokens that the first request after the restart computed.
        from_disk: Seconds to its first token.
        cold: Seconds to the first token of a prefix without reuse.
        ratio: Of the two.
        disk_bytes: Bytes of one prefix on the disk.
        restore: Seconds that the disk takes beyond memory.
        dd: Seconds in which `dd` reads as many bytes.
        pace: Rate of the restore, as a part of that of `dd`.
    """

    shape: str
    tokens: int
    computed: int
    from_disk: float
    cold: float
    ratio: float
    disk_bytes: int
    restore: float
    dd: float
    pace: float


@dataclass(frozen=True, slots=True)
class Restart:
    """
    The first requests of one daemon, in seconds to a first token.

    Attributes:
        computed: Tokens that the first one computed.
        first: The first one, with the first prefix.
        restored: The second one, with the second prefix.
        memory: The same out of memory.
        dd: Seconds in which `dd` reads as many bytes as a prefix has.
    """

    computed: int
    first: float
    restored: float
    memory: float
    dd: float


def main() -> int:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disk", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 8192, 16384])
    parser.add_argument("--shapes", nargs="*", default=["small", "window", "hybrid"])
    parser.add_argument("--restarts", type=int, default=5, help="daemons that are started; figures are medians")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="a directory on the disk to measure")
    parser.add_argument("--out", type=Path, default=RESULTS / "disk.json", help="where the figures go")
    arguments = parser.parse_args()
    rows = []
    for shape in arguments.shapes:
        for tokens in arguments.lengths:
            with tempfile.TemporaryDirectory(prefix="mlxs-", dir=arguments.folder) as folder:
                rows.append(measure(Path(folder), shape, tokens, arguments.restarts))
            row = rows[-1]
            print(f"{shape:8} {tokens:6} computed {row.computed:4}", end=" ")
            print(f"from disk {row.from_disk:.3f} s, cold {row.cold:.3f} s, ratio {row.ratio:.3f}")
            print(
                f"{'':15} {row.disk_bytes / 1e6:.1f} MB restored in {row.restore:.3f} s, by `dd` {row.dd:.3f} s, "
                f"pace {row.pace:.2f}",
                flush=True,
            )
    figures = {"benchmark": "disk tier", **machine.describe(), "rows": [asdict(row) for row in rows]}
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure(folder: Path, shape: str, tokens: int, restarts: int) -> Row:
    """Use prefixes twice, then kill the daemon and measure the first requests of the next one, some times."""
    model, prompts, cold = prepare(folder, shape, tokens)
    rounds = [restart(folder, model, prompts) for _ in range(restarts)]
    computed = rounds[0].computed
    first, restored, memory, dd = (
        statistics.median(getattr(each, name) for each in rounds) for name in ("first", "restored", "memory", "dd")
    )
    restore = max(1e-6, restored - memory)
    return Row(shape, tokens, computed, first, cold, first / cold, kept_bytes(folder), restore, dd, dd / restore)


def prepare(folder: Path, shape: str, tokens: int) -> tuple[str, list[list[int]], float]:
    """
    Write a model, use two prefixes twice and kill the daemon.

    Returns:
        The model, prompts that begin with the prefixes, and the seconds that the second prefix took without reuse.
    """
    model = str(shapes.write(folder / "model", shape))
    chance = random.Random(tokens)
    prefixes = [chance.choices(range(10, 900), k=tokens) for _ in range(2)]
    daemon = RunningDaemon.start(folder, kv_disk_mb="4096")
    with daemon.client() as client:
        client.load(model)
        cold = [first_token(client, model, prefix)[0] for prefix in prefixes][-1]
        for prefix in prefixes:
            first_token(client, model, prefix)
        written(client)
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    return model, [[*prefix, *range(20, 20 + SUFFIX)] for prefix in prefixes], cold


def restart(folder: Path, model: str, prompts: Sequence[list[int]]) -> Restart:
    """Start a daemon, and measure its first requests."""
    dd = read_by_dd(kept_bytes(folder), folder / "together")
    first, second = prompts
    daemon = RunningDaemon.start(folder, kv_disk_mb="4096")
    try:
        with daemon.client() as client:
            client.load(model)
            first_token(client, model, first[:100][::-1], mode="bypass")
            for piece in pieces(folder):
                drop_pages(piece)
            from_disk, cached = first_token(client, model, first, mode="read_only")
            restored, _ = first_token(client, model, second, mode="read_only")
            memory = statistics.median(first_token(client, model, second, mode="read_only")[0] for _ in range(3))
    finally:
        daemon.stop()
    return Restart(len(first) - cached, from_disk, restored, memory, dd)


def pieces(folder: Path) -> list[Path]:
    """Return the files of the prefixes."""
    return sorted((folder / "kv").glob("*.kv"))


def kept_bytes(folder: Path) -> int:
    """Return the bytes of one of the two prefixes on the disk."""
    return sum(piece.stat().st_size for piece in pieces(folder)) // 2


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


def read_by_dd(nbytes: int, together: Path) -> float:
    """Return the seconds in which `dd` reads so many bytes out of one file, without a page cache."""
    together.write_bytes(random.Random(0).randbytes(nbytes))
    drop_pages(together)
    began = time.perf_counter()
    subprocess.run(["dd", f"if={together}", "of=/dev/null", "bs=4194304"], check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    together.unlink()
    return seconds


def drop_pages(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # type: ignore[attr-defined, unused-ignore]
    finally:
        os.close(file)


if __name__ == "__main__":
    sys.exit(main())
