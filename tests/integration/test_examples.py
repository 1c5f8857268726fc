"""The programs in `examples/` run as they are and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MOST_LINES = 40
"""An example longer than a screen is a program of its own."""


def test_engine_example_reuses_common_beginning(folder: Path) -> None:
    """The first prompt computes everything, the second one all but its last block; nothing is left in the home."""
    environ = {**os.environ, "HOME": str(folder)}
    shown = subprocess.run(
        [sys.executable, str(EXAMPLES / "engine.py")],
        capture_output=True, text=True, timeout=120, check=True, env=environ,
    ).stdout  # fmt: skip
    (cold, reused_cold), (warm, reused_warm) = re.findall(r"(\d+) prompt tokens, (\d+) reused", shown)
    assert (cold, reused_cold) == (warm, "0")
    assert int(warm) - 16 <= int(reused_warm) < int(warm)
    assert not list(folder.iterdir())


def test_examples_fit_a_screen() -> None:
    """Each file has at most `MOST_LINES` lines."""
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
