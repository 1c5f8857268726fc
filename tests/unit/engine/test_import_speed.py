"""The engine's libraries are imported without work that is done twice."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from daemon.engine.import_speed import SCANNER, short_imports

COUNTED = f"""
import sys
from pathlib import Path
from daemon.engine.import_speed import FUNCTION, short_imports
with short_imports():
    import daemon.engine.composition
scan = getattr(sys.modules["{SCANNER}"], FUNCTION)
folders = sum(each.is_dir() for each in Path(sys.modules["transformers"].__file__).parent.glob("models/*"))
print(folders, scan.cache_info().misses, scan.cache_info().hits)
"""


def test_each_folder_of_transformers_is_read_once() -> None:
    """Its own cache holds fewer folders than there are, so that the second import of all would read them again."""
    told = subprocess.run([sys.executable, "-c", COUNTED], check=True, capture_output=True, text=True, timeout=300)
    folders, read, reused = map(int, told.stdout.split())

    assert 128 < folders <= read < 1.1 * folders  # a few are read under two names
    assert reused >= 0.9 * folders


def test_imports_leave_no_hook_behind() -> None:
    """Whether they succeed or not; garbage is collected again afterwards."""
    before = list(sys.meta_path)
    with pytest.raises(ModuleNotFoundError), short_imports():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401

    assert sys.meta_path == before
    assert gc.isenabled()
