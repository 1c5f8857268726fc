"""
A hook around the engine's first imports: transformers reads its files once, and garbage is collected later.

At import, transformers reads some 1,700 of its source files to learn which names they export. It does so twice, because
its cache of folders holds 128 and there are more than 500. The cache is replaced by one without a limit, as soon as the
module that has it is executed; where a release of transformers has none, nothing changes.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

SCANNER = "transformers.utils.import_utils"
"""The module of transformers with the function that reads a folder's files."""

FUNCTION = "create_import_structure_from_path"


class _Once(MetaPathFinder, Loader):
    """Finds and executes one module, and replaces the cache of its function."""

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
        """Execute it, and replace the cache."""
        self._loader.exec_module(module)
        scan = getattr(getattr(module, FUNCTION, None), "__wrapped__", None)
        if scan is not None:
            setattr(module, FUNCTION, functools.cache(scan))


@contextmanager
def short_imports() -> Iterator[None]:
    """Import within this block what takes long."""
    once = _Once()
    sys.meta_path.insert(0, once)
    collecting = gc.isenabled()
    gc.disable()  # modules stay: a collection in between finds next to nothing
    try:
        yield
    finally:
        sys.meta_path.remove(once)
        if collecting:
            gc.enable()
