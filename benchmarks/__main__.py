"""
Time to first token, cold against warm, over the socket: `python -m benchmarks [--rounds N] [--out FILE]`.

Cold and warm alternate within one run, on one daemon, for each prefix length; the figure to trust is their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from mlx_sidecar import Client
from tools.demo import daemon
from tools.embedded import corpus

LENGTHS = (250, 500, 1000, 2000)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one prefix length. Times are seconds from arrival to first token, as the daemon saw them."""

    prompt_tokens: int
    cached_tokens: int
    cold: float
    warm: float
    cold_spread: tuple[float, float]
    warm_spread: tuple[float, float]

    @property
    def ratio(self) -> float:
        """How many times sooner the first token of a warm request comes."""
        return self.cold / self.warm


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="pairs of cold and warm for each length")
    parser.add_argument("--out", type=Path, default=RESULTS / "ttft.json", help="where the figures go")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="mlxs-", dir="/tmp") as folder,
        daemon(Path(folder)) as environ,
        Client(environ["MLX_SIDECAR_SOCKET"]) as client,
    ):
        client.load("embedded")
        rows = [measure(client, length, arguments.rounds) for length in LENGTHS]
    for row in rows:
        print(
            f"{row.prompt_tokens:5} prompt tokens, {row.cached_tokens:5} of them cached: "
            f"cold {1000 * row.cold:7.1f} ms, warm {1000 * row.warm:6.1f} ms, {row.ratio:5.1f} x"
        )
    arguments.out.write_text(json.dumps(report(rows, arguments.rounds), indent=2) + "\n")
    return 0


def measure(client: Client, length: int, rounds: int) -> Row:
    """Alternate: a question under a salt of its own, then another question over the same context and salt."""
    cold, warm, prompt, cached = [], [], 0, 0
    for number, example in zip(range(rounds + 1), corpus.held_out(seed=length, tokens_hint=length), strict=False):
        salt = f"{length}-{number}"
        asked = [corpus.completion_question(corpus.question(fact)) for fact in example.facts[:2]]
        first = client.complete("embedded", example.context + asked[0], max_tokens=4, salt=salt)
        second = client.complete("embedded", example.context + asked[1], max_tokens=4, salt=salt)
        if number == 0:
            continue  # the first pair pays for the machine's own warm-up
        assert first.timings.first_token is not None
        assert second.timings.first_token is not None
        cold.append(first.timings.first_token)
        warm.append(second.timings.first_token)
        prompt, cached = second.usage.prompt_tokens, second.usage.cached_tokens
    return Row(prompt, cached, median(cold), median(warm), (min(cold), max(cold)), (min(warm), max(warm)))


def report(rows: list[Row], rounds: int) -> dict[str, object]:
    """Return the figures with what they were measured on."""
    return {
        "benchmark": "time to first token, cold against warm, embedded model",
        "rounds": rounds,
        **machine(),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }


def machine() -> dict[str, object]:
    """Return what figures were measured on."""
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm", "grpcio", "mlx-sidecar")},
        "blas": "OpenBLAS preloaded" if "openblas" in os.environ.get("LD_PRELOAD", "") else "as shipped with mlx",
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }


if __name__ == "__main__":
    sys.exit(main())
