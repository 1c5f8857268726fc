"""
Build both distributions, each as an sdist and a wheel: `python -m tools.build_dists [DIRECTORY]`, by default `dist`.

The same commit gives the same bytes: times come from SOURCE_DATE_EPOCH, by default that of the last commit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = (Path(), Path("clients", "python"))
"""Where the pyproject.toml of each distribution is: of the daemon, and of the client alone."""


def build(root: Path, out: Path, epoch: int) -> list[Path]:
    """
    Build everything of a checkout.

    Args:
        root: The checkout.
        out: Gets the files.
        epoch: Time of all entries, in seconds since 1970.

    Returns:
        The files, sorted.

    Raises:
        subprocess.CalledProcessError: If a build fails; its output is on stderr.
    """
    for project in PROJECTS:
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(root / project)]
        environ = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "SIDECAR_BUILD_CLIENT_BY_NAME": "1"}
        subprocess.run(command, env=environ, stdout=sys.stderr, check=True)
    return sorted(out.glob("mlx_sidecar*"))


def commit_epoch() -> int:
    """Return SOURCE_DATE_EPOCH, or the time of the last commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    shown = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(shown.stdout)


if __name__ == "__main__":
    out = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist"
    for path in build(ROOT, out, commit_epoch()):
        print(path)
