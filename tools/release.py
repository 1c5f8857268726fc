"""
Check a release and write its Homebrew formula: `python -m tools.release TAG [SDIST URL HOMEPAGE]`.

Checks that the tag, the version and the changelog agree, and prints that version's changes. With a source distribution,
fills in the Homebrew formula and writes it beside that file.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from daemon import __version__

ROOT = Path(__file__).resolve().parent.parent
FORMULA = ROOT / "launchd" / "mlx-sidecar.rb"


def changes(tag: str, changelog: str) -> str:
    """
    Return what the changelog says of a tag's version.

    Raises:
        ValueError: If the tag is not that of this version, or the changelog has nothing, or no date, for it.
    """
    if tag != f"v{__version__}":
        raise ValueError(f"the tag is {tag}, but the version is {__version__}; it stands in mlx_sidecar/_version.py")
    title = rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d{{2}}-\d{{2}}\n"
    section = re.search(title + r"(.*?)(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE)
    if section is None or not section[1].strip():
        raise ValueError(f"CHANGELOG.md has no section `## [{__version__}] - YYYY-MM-DD`; rename [Unreleased]")
    return section[1].strip()


def formula(template: str, sdist: bytes, url: str, homepage: str) -> str:
    """Return the Homebrew formula of a source distribution that is at `url`."""
    values = {"@URL@": url, "@HOMEPAGE@": homepage, "@SHA256@": hashlib.sha256(sdist).hexdigest()}
    for name, value in values.items():
        template = template.replace(name, value)
    return template


if __name__ == "__main__":
    tag, *rest = sys.argv[1:]
    try:
        print(changes(tag, (ROOT / "CHANGELOG.md").read_text()))
    except ValueError as error:
        sys.exit(f"not ready: {error}")
    if rest:
        sdist = Path(rest[0])
        sdist.with_name(FORMULA.name).write_text(formula(FORMULA.read_text(), sdist.read_bytes(), rest[1], rest[2]))
