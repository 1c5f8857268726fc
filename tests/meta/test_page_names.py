"""Files, functions and classes that a page about the design names exist."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DESIGN = (
    "architecture.md",
    "concepts.md",
    "engine-loop.md",
    "how-to-add.md",
    "kv-tier.md",
    "memory-ledger.md",
    "model-cache.md",
    "prefix-cache.md",
    "request-lifecycle.md",
)
"""Pages that name parts of the code."""


@pytest.mark.parametrize("name", DESIGN)
def test_files_that_a_page_names_exist(name: str) -> None:
    """A path below the repository or below daemon/, or the bare name of a module."""
    modules = {
        path.name for folder in ("daemon", "tests", "tools", "clients") for path in (ROOT / folder).rglob("*.py")
    }
    named = set(re.findall(r"`([\w/]+\.py|daemon/[\w/]+/)`", (ROOT / "docs" / name).read_text()))
    assert named
    assert not [path for path in named if path not in modules and not _exists(path)]


def _exists(path: str) -> bool:
    return any((ROOT / base / path).exists() for base in (".", "daemon", "daemon/server", "daemon/engine"))


@pytest.mark.parametrize("name", DESIGN)
def test_functions_that_a_page_names_in_a_file_are_there(name: str) -> None:
    """Such as `update` and `renew` in `daemon/engine/execution/outlooks.py`."""
    text = (ROOT / "docs" / name).read_text()
    for names, path in re.findall(r"((?:`\w+`(?:, | and )?)+) in `(daemon/[\w/]+\.py)`", text):
        code = (ROOT / path).read_text()
        parts = re.findall(r"`(\w+)`", names)
        assert not [part for part in parts if not re.search(rf"^ *(?:def |class |){part}\b", code, re.MULTILINE)], path


@pytest.mark.parametrize("name", DESIGN)
def test_classes_that_a_page_names_exist(name: str) -> None:
    """Such as `Turns.took` and `policy.Turns`: with that attribute, or in that module."""
    known = names_of_classes()
    text = (ROOT / "docs" / name).read_text()
    pairs = re.findall(r"`(?:\w+\.)*(\w+)\.(\w+)(?:\(\))?`", text)
    named = [(owner, part) for owner, part in pairs if owner in known and (owner[0].isupper() or part[0].isupper())]
    assert [f"{owner}.{part}" for owner, part in named if part not in known[owner]] == []


@cache
def names_of_classes() -> dict[str, set[str]]:
    """Return the names within each class of the daemon, and the classes of each module, by its last name."""
    names: defaultdict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "daemon").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names[path.stem].add(node.name)
                parts = [getattr(part, field, None) for part in ast.walk(node) for field in ("name", "attr", "id")]
                names[node.name] |= {part for part in parts if isinstance(part, str)}
    return names
