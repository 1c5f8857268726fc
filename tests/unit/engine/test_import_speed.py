"""The engine's libraries are imported without work that is done twice."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.engine.import_speed import SCANNER, bare, short_imports

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


RENDERER = """
import json, sys
from daemon.engine.template_worker import import_renderer
render = import_renderer()
(text,), _ = render(conversations=[[{"role": "user", "content": "Hello"}]], chat_template="{{ messages[0].content }}")
assert import_renderer() is render
print(json.dumps([text, sorted(sys.modules)]))
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


def test_renderer_of_templates_is_imported_alone() -> None:
    """Without the scan of all models and without the client of the Hub, which take most of the time."""
    told = subprocess.run([sys.executable, "-c", RENDERER], check=True, capture_output=True, text=True, timeout=300)
    text, modules = json.loads(told.stdout)
    assert text == "Hello"
    assert "transformers.utils.chat_template_utils" in modules
    assert not {"transformers.utils.hub", "transformers.utils.generic", "huggingface_hub.hf_api"} & set(modules)


@pytest.fixture(name="needy")
def _needy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a package with a module that takes something from the package itself, and one that does not."""
    name = "needy_package"
    for place, text in (("", "given = 1\n"), ("inner", "")):
        (tmp_path / name / place).mkdir()
        (tmp_path / name / place / "__init__.py").write_text(text)
    (tmp_path / name / "inner" / "needs.py").write_text(f"from {name} import given\n")
    (tmp_path / name / "inner" / "alone.py").write_text("from . import needs_not\n")
    (tmp_path / name / "inner" / "needs_not.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def test_module_that_needs_its_package_gets_it_at_the_second_try(needy: str) -> None:
    """Nothing is left of the first one."""
    with pytest.raises(ImportError), bare(needy, "inner"):
        importlib.import_module(f"{needy}.inner.needs")
    assert not [module for module in sys.modules if module.startswith(needy)]
    assert importlib.import_module(f"{needy}.inner.needs").given == 1


def test_package_that_is_imported_already_stays_as_it_is(needy: str) -> None:
    whole = importlib.import_module(needy)
    with bare(needy, "inner"):
        assert importlib.import_module(f"{needy}.inner.needs").given == 1
    assert sys.modules[needy] is whole


def test_package_without_its_code_gives_its_modules(needy: str) -> None:
    with bare(needy, "inner"):
        importlib.import_module(f"{needy}.inner.alone")
    assert not hasattr(sys.modules[needy], "given")


def test_package_that_is_not_there_is_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), bare("no_such_package"):
        pass
