"""python-daemon has a package `daemon` too, and overwrites ours when it is installed later beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import daemon


def test_clashing_package_named_daemon_is_reported(tmp_path: Path) -> None:
    """With what to do; a traceback about a missing name would help nobody."""
    package = tmp_path / "daemon"
    package.mkdir()
    for path in Path(daemon.__path__[0]).iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            (package / path.name).symlink_to(path)
    (package / "__init__.py").write_text("class DaemonContext: ...\n")
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"has overwritten the package `daemon` in {package}." in done.stderr
    assert "in a checkout of it, run: uv tool install " in done.stderr


def test_local_folder_named_daemon_spares_the_engine(tmp_path: Path) -> None:
    """The engine, the service and the doctor start with -P, which keeps it off the module path."""
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon" / "__init__.py").write_text("raise SystemExit('not ours')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "daemon", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert daemon.__version__ in done.stdout
