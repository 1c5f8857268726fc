"""Sizes and counts are formatted in one way in each command, page and error."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import daemon
from daemon.shared.wording import count, did_you_mean, sizes_apart

ROOT = Path(daemon.__file__).parent


def test_count_of_one_is_singular() -> None:
    assert [count(number, "block") for number in (0, 1, 2, 1234)] == ["0 blocks", "1 block", "2 blocks", "1,234 blocks"]
    assert [count(number, "entry", "entries") for number in (1, 2)] == ["1 entry", "2 entries"]


def test_compared_sizes_never_read_alike() -> None:
    """A refusal that said "24.0 GiB needed, 24.0 GiB allowed" would explain nothing."""
    assert sizes_apart(3 << 30, 1 << 30) == ("3.0 GiB", "1.0 GiB")
    assert sizes_apart((1 << 30) + 1, 1 << 30) == ("1,073,741,825 B", "1,073,741,824 B")
    assert sizes_apart(1 << 30, 1 << 30) == ("1.0 GiB", "1.0 GiB")


def test_nearest_name_is_asked_for() -> None:
    """Whatever its case; a long word is compared by its beginning, which takes no time."""
    assert did_you_mean("AUT", ["auto", "none"]) == "did you mean auto?"
    assert did_you_mean("max_modles", ["MAX_MODELS"]) == "did you mean MAX_MODELS?"
    assert did_you_mean("auto" * 10**6, ["auto", "none"]) == did_you_mean("xyz", ["auto"]) == ""


def texts(path: Path) -> list[str]:
    """Return the texts of a module, without docstrings; `{}` stands for each value in an f-string."""
    tree = ast.parse(path.read_text())
    silent = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(one.value) if isinstance(one, ast.Constant) else "{}" for one in node.values]
            silent |= {id(one) for one in node.values}
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            found.append(node.value)
    return found


SOURCES = [*sorted((ROOT / "cli").glob("*.py")), *sorted((ROOT / "doctor").glob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_commands_format_sizes_with_one_function(path: Path) -> None:
    """Neither decimal units nor a unit behind a figure, nor a plural behind a figure that may be one."""
    plural = r"\{\} (blocks|hits|requests|restarts|evictions|models|namespaces|prompts|checks|beginnings)\b"
    for text in texts(path):
        assert not re.search(r"\b[KMGT]B\b", text), text
        assert not re.search(r"\{\} ?[KMGT]i?B\b", text), text
        assert not re.search(plural, text), text
