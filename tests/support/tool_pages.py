"""The pages of docs/tools, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs" / "tools").glob("*.md"))}


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of code of a page in a language, without the indentation of lists."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", PAGES[page], re.DOTALL | re.MULTILINE)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]
