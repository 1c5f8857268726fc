"""Put the figures of the last benchmark into the README; a test checks that they are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "ttft.json"
_BLOCK = re.compile(r"(<!-- figure: .* -->\n).*?(<!-- end of figure -->)", re.DOTALL)


def figure() -> str:
    """Return the table of the last benchmark as Markdown."""
    report = json.loads(RESULTS.read_text())
    lines = ["| prompt | of it cached | first token, cold | first token, warm | |", "|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {row['prompt_tokens']} tokens | {row['cached_tokens']} | {1000 * row['cold']:.0f} ms "
        f"| {1000 * row['warm']:.0f} ms | **{row['ratio']:.0f} x** sooner |"
        for row in report["rows"]
    ]
    where = f"{report['machine']}, MLX's CPU backend, embedded model, medians of {report['rounds']} pairs in one run"
    return "\n".join([*lines, "", f"(`make bench`; {where})", ""])


def filled(text: str) -> str:
    """Return the README's text with the figure in its place."""
    return _BLOCK.sub(lambda match: match[1] + figure() + match[2], text)


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
