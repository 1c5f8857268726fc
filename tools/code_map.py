"""
Write docs/code-map.md: one line for each module of the daemon, from its docstring, in reading order.

Folders come in the order of a request's life. Within a folder a module comes before those that it imports.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "code-map.md"
FOLDERS = (
    "", "server", "server/supervision", "server/group", "shared", "engine", "engine/background", "engine/calls",
    "engine/prompt",
    "engine/scheduling", "engine/execution", "engine/output", "engine/output/notations", "engine/structured_output",
    "engine/memory", "engine/reporting", "engine/group", "cache", "cache/mlx", "kv", "kv/disk", "kv/mlx",
    "kv/mlx/adapters", "cli", "cli/commands", "cli/output", "cli/terminal", "launch", "doctor", "launchd", "http",
)  # fmt: skip
"""Folders of the daemon with code that was written by hand: the process first, then the life of a request."""

_HEADING = """# The code, in reading order

Made from the docstrings of the modules by `make gen`; change those, not this page.

Folders come in the order of a request's life, and within a folder a module comes before those that it imports.
Seven files show the engine's idea: `engine/engine.py`, `engine/execution/runner.py`, `engine/scheduling/policy.py`,
`engine/execution/prefill.py`, `engine/execution/batch.py`, `kv/prefix_cache.py` and `kv/trie.py`.
"""


def page() -> str:
    """Return the page as Markdown."""
    return _HEADING + "".join(_section(folder) for folder in folders())


def folders() -> list[str]:
    """Return all folders in reading order: at the end those of the APIs that are served over HTTP."""
    apis = sorted(path.parent.name for path in (ROOT / "daemon" / "http").glob("*/__init__.py"))
    return [*FOLDERS, *(f"http/{name}" for name in apis)]


def modules(folder: str) -> list[Path]:
    """
    Return the modules of a folder of the daemon, importers before what they import.

    Args:
        folder: Relative to `daemon/`, with slashes.
    """
    waiting = {path.stem: path for path in sorted((ROOT / "daemon" / folder).glob("*.py")) if path.stem != "__init__"}
    imports = {name: _imports(path, folder) & waiting.keys() - {name} for name, path in waiting.items()}
    ordered: list[Path] = []
    while waiting:
        free = [name for name in waiting if not any(name in imports[other] for other in waiting)] or list(waiting)
        ordered.append(waiting.pop(free[0]))
    return ordered


def summary(path: Path) -> str:
    """Return the first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def _imports(path: Path, folder: str) -> set[str]:
    """Return the modules of its own folder that a module imports, by name."""
    package = ".".join(["daemon", *folder.split("/")] if folder else ["daemon"])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            head, _, last = node.module.rpartition(".")
            names |= {last} if head == package else set()
            names |= {alias.name for alias in node.names} if node.module == package else set()
    return names


def _section(folder: str) -> str:
    name = f"daemon/{folder}".rstrip("/")
    what = summary(ROOT / name / "__init__.py")
    rows = "".join(f"| `{path.name}` | {summary(path)} |\n" for path in modules(folder))
    return f"\n## `{name}/`\n\n{what}\n\n| module | subject |\n|---|---|\n{rows}"


if __name__ == "__main__":
    PAGE.write_text(page())
