"""
Hooks around the engine's first imports: transformers reads fewer files, each once, and garbage is collected later.

At import, transformers reads some 1,700 of its source files to learn which names they export. It does so twice, because
its cache of folders holds 128 and there are more than 500. The cache is replaced by one without a limit, as soon as the
module that has it is executed; where a release of transformers has none, nothing changes.

Two thirds of these files, and nine tenths of their text, are of models, images and sounds. The engine takes tokenizers
and configurations of transformers, and no more. So the others are read as if they were empty.

The process that renders chat templates takes one module of it, and none of what the package itself imports.
"""

from __future__ import annotations

import functools
import gc
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from daemon.shared.kept_out import kept_out

SCANNER = "transformers.utils.import_utils"
"""The module of transformers with the function that reads a folder's files."""

FUNCTION = "create_import_structure_from_path"

_UNUSED = ("modeling_", "processing_", "image_processing_", "video_processing_", "feature_extraction_", "generation_")
"""Beginnings of the names of files that export nothing for the engine."""

_TABLES = "_auto.py"
"""End of the names of files with tables of classes, which descriptions of configurations are made from."""


class _Once(MetaPathFinder, Loader):
    """Finds and executes one module, and replaces the cache of its function and the way in which it reads files."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own spec with this object as its loader."""
        found = PathFinder.find_spec(fullname, path) if fullname == SCANNER else None
        if found is None or found.loader is None:
            return None
        self._loader = found.loader
        found.loader = self
        return found

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Let the usual loader create the module."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute it, and replace the cache and `open`."""
        self._loader.exec_module(module)
        vars(module)["open"] = _opened
        scan = getattr(getattr(module, FUNCTION, None), "__wrapped__", None)
        if scan is not None:
            setattr(module, FUNCTION, functools.cache(scan))


def _opened(path: Any, *how: Any, **named: Any) -> Any:
    """Open a file as `open` does; one that exports nothing for the engine is empty."""
    name = str(path).rpartition("/")[2]
    return io.StringIO() if name.startswith(_UNUSED) and not name.endswith(_TABLES) else open(path, *how, **named)


@contextmanager
def short_imports() -> Iterator[None]:
    """
    Import within this block what takes long.

    transformers uses PIL for images if it is there, and the engine has none.
    """
    once = _Once()
    sys.meta_path.insert(0, once)
    collecting = gc.isenabled()
    gc.disable()  # modules stay: a collection in between finds next to nothing
    try:
        with kept_out("PIL"):
            yield
    finally:
        sys.meta_path.remove(once)
        gc.freeze()  # the first collection would go through all of it
        if collecting:
            gc.enable()


@contextmanager
def bare(package: str, *folders: str) -> Iterator[None]:
    """
    Import modules of a package within this block without the code of the package itself.

    Nothing changes where the package is imported already. After an error, nothing of the package is.

    Args:
        package: Its name.
        folders: Names of packages in it that go without their code too.

    Raises:
        ImportError: A module takes something from the package itself, or there is no such package.
    """
    if package in sys.modules:
        yield
        return
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"no package named {package}", name=package)
    root = found.submodule_search_locations[0]
    for name in ("", *folders):
        module = ModuleType(f"{package}.{name}".rstrip("."))
        module.__path__ = [f"{root}/{name}".rstrip("/")]
        sys.modules[module.__name__] = module
    try:
        yield
    except BaseException:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        raise
