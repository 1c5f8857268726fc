"""Fixtures of the tests of the disk tier."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.kv.disk.files import Files


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> Files:
    """Return the files of a tier, opened."""
    files = Files(tmp_path / "kv")
    files.open()
    return files
