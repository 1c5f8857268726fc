"""
Write the library versions of this environment as the tested versions: `python -m tools.constraints`.

`daemon/constraints.txt` has what the daemon runs with, its extras included; `tools/constraints.txt` adds what
development needs. Only names and versions: what an environment was installed from is of no interest to another one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "daemon" / "constraints.txt"
DEVELOP = ROOT / "tools" / "constraints.txt"
INSTALL_TOOLS = {"pip", "setuptools"}
"""They bring themselves up to date, and make_venv asks for a pip of its own."""

RUN_HEAD = """\
# What the daemon was last tested with; `python -m tools.constraints` writes it, `mlx-sidecar doctor` compares with it.
"""
DEVELOP_HEAD = """\
# What development adds to it; `python -m tools.constraints` writes it.
-c ../daemon/constraints.txt
"""


def closure(wanted: Iterable[str]) -> dict[str, str]:
    """
    Return name and version of everything that requirements bring into this environment, as far as it is installed.

    A requirement with a marker for another system is none here.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(one), "") for one in wanted]
    while waiting:
        requirement, of_extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                there = distribution(name)
            except PackageNotFoundError:
                continue
            found[name] = there.version
            waiting += [(Requirement(one), extra) for one in there.requires or ()]
    return found


def pages(project: dict[str, Any]) -> dict[Path, str]:
    """Return the text of both files for the environment that this runs in."""
    extras = [one for group in project["project"]["optional-dependencies"].values() for one in group]
    run = closure([*project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["dependencies"], *extras])
    run["mlx-metal"] = run["mlx"]  # the Mac's half of MLX, which Linux never installs; its version is the same
    develop = closure([one for group in project["dependency-groups"].values() for one in group])
    own = {name: version for name, version in develop.items() if name not in run and name not in INSTALL_TOOLS}
    run = {name: version for name, version in run.items() if name not in INSTALL_TOOLS}
    return {RUN: RUN_HEAD + _lines(run), DEVELOP: DEVELOP_HEAD + _lines(own)}


def pins(text: str) -> dict[str, str]:
    """
    Return name and version of each line.

    Raises:
        ValueError: If a line is neither that, nor a comment, nor names another such file.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith(("#", "-c ")) or not line:
            continue
        if (pin := re.fullmatch(r"([a-z0-9-]+)==([a-z0-9.!+]+)", line)) is None:
            raise ValueError(f"{line!r} is not name==version")
        found[pin[1]] = pin[2]
    return found


def _lines(versions: dict[str, str]) -> str:
    return "".join(f"{name}=={versions[name]}\n" for name in sorted(versions))


if __name__ == "__main__":
    for path, text in pages(tomllib.loads((ROOT / "pyproject.toml").read_text())).items():
        path.write_text(text)
        print(path)
