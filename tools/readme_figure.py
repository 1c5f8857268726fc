"""Quote two figures of the last whole benchmark in the README; a test checks that they are there."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import page
from benchmarks.figures import FIRST_TOKEN, OURS, Metric, Result
from benchmarks.http_peer import MLX_LM
from benchmarks.page import number
from benchmarks.workloads.kv_bytes import KEPT
from benchmarks.workloads.switching import GROWING

README = Path(__file__).resolve().parent.parent / "README.md"
_BLOCK = re.compile(r"(<!-- figure: .* -->\n).*?(<!-- end of figure -->)", re.DOTALL)


def figure() -> str:
    """Return the figures as Markdown."""
    report, results = page.load()
    lines = [
        f"| | mlx-sidecar | {MLX_LM} |",
        "|---|---:|---:|",
        _line("32 conversations over 2,048 common tokens: KV kept", results, "kv-bytes", "32 conversations", KEPT),
        _line("two conversations, two models in turn: first token", results, "switching", GROWING, FIRST_TOKEN),
    ]
    about = [
        f"{report['machine']}, MLX's CPU backend, models with random weights",
        "[method, all figures, and where others are ahead](docs/benchmarks.md)",
    ]
    return "\n".join([*lines, "", *(f"{sentence}." for sentence in about), ""])


def filled(text: str) -> str:
    """Return the README's text with the figures in their place."""
    return _BLOCK.sub(lambda match: match[1] + figure() + match[2], text)


def write() -> None:
    """Write the figures into the README."""
    README.write_text(filled(README.read_text()))


def _line(what: str, results: dict[str, Result], workload: str, case: str, metric: Metric) -> str:
    result = results.get(workload)
    rows = [result.find(case, metric, system) if result else None for system in (OURS, MLX_LM)]
    cells = [f"{number(row.median)} {metric.unit}" if row else "not measured" for row in rows]
    return "| " + " | ".join([what, *cells]) + " |"


if __name__ == "__main__":
    write()
