"""Quote two figures of the last whole benchmark in the README; a test checks that they are there."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import page
from benchmarks.figures import FIRST_TOKEN, OURS, Result
from benchmarks.http_peer import MLX_LM
from benchmarks.page import number
from benchmarks.workloads.switching import CASE

README = Path(__file__).resolve().parent.parent / "README.md"
PREFIX = "small, 2048 tokens"
_BLOCK = re.compile(r"(<!-- figure: .* -->\n).*?(<!-- end of figure -->)", re.DOTALL)


def figure() -> str:
    """Return the figures as Markdown."""
    report, results = page.load()
    lines = [
        f"| first token, median | mlx-sidecar | {MLX_LM} |",
        "|---|---:|---:|",
        _line("2,048 known tokens of a prompt, 32 new ones", results.get("prefix"), PREFIX),
        _line("two models, each request for the other one", results.get("switching"), CASE),
    ]
    where = f"{report['machine']}, MLX's CPU backend, models with random weights"
    more = "[method, all figures, and where others are ahead](docs/benchmarks.md)"
    return "\n".join([*lines, "", f"({'; '.join(filter(None, (where, report['note'], more)))})", ""])


def filled(text: str) -> str:
    """Return the README's text with the figures in their place."""
    return _BLOCK.sub(lambda match: match[1] + figure() + match[2], text)


def write() -> None:
    """Put the figures into the README."""
    README.write_text(filled(README.read_text()))


def _line(what: str, result: Result | None, case: str) -> str:
    rows = [result.find(case, FIRST_TOKEN, system) if result else None for system in (OURS, MLX_LM)]
    return "| " + " | ".join([what, *(f"{number(row.median)} ms" if row else "not measured" for row in rows)]) + " |"


if __name__ == "__main__":
    write()
