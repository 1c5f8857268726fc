"""The engine's libraries are imported without work that is done twice."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections import Counter

import pytest

from daemon.engine.import_speed import SCANNER, short_imports

COUNTED = f"""
import gc, json, sys
from pathlib import Path
from daemon.engine.import_speed import FUNCTION, short_imports
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
with short_imports():
    import daemon.engine.composition
left = gc.get_freeze_count(), len(gc.get_objects())
models = Path(sys.modules["transformers"].__file__).parent / "models"
read = [Path(each).name for each in opened if each.startswith(str(models)) and each.endswith(".py")]
scan = getattr(sys.modules["{SCANNER}"], FUNCTION).cache_info()
print(json.dumps([sum(each.is_dir() for each in models.glob("*")), scan.misses, scan.hits, left, read]))
"""


@pytest.fixture(name="counted", scope="module")
def _counted() -> tuple[int, int, int, list[int], list[str]]:
    """Return folders: all, read, read again; objects: frozen, others; and the source files that were read."""
    told = subprocess.run([sys.executable, "-c", COUNTED], check=True, capture_output=True, text=True, timeout=300)
    folders, read, reused, left, files = json.loads(told.stdout)
    return folders, read, reused, left, files


def test_each_folder_of_transformers_is_read_once(counted: tuple[int, int, int, list[int], list[str]]) -> None:
    """Its own cache holds fewer folders than there are, so that the second import of all would read them again."""
    folders, read, reused, _, _ = counted
    assert 128 < folders <= read < 1.1 * folders  # a few are read under two names
    assert reused >= 0.9 * folders


def test_files_without_exports_for_us_are_not_read(counted: tuple[int, int, int, list[int], list[str]]) -> None:
    """What is left are tokenizers, configurations, and the tables of classes."""
    kinds = Counter("table" if name.endswith("_auto.py") else name.partition("_")[0] for name in counted[4])
    assert not kinds.keys() & {"modeling", "processing", "image", "video", "feature", "generation"}
    assert kinds["configuration"] > 100
    assert kinds["tokenization"] > 50
    assert kinds["table"] > 3


def test_collector_does_not_go_through_what_was_imported(counted: tuple[int, int, int, list[int], list[str]]) -> None:
    """It would take a tenth of a second, as soon as the imports are done, and everything stays."""
    frozen, others = counted[3]
    assert frozen > 10 * others


def test_imports_leave_no_hook_behind() -> None:
    """Whether they succeed or not; garbage is collected again afterwards."""
    before = list(sys.meta_path)
    with pytest.raises(ModuleNotFoundError), short_imports():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401

    assert sys.meta_path == before
    assert gc.isenabled()
