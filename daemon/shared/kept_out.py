"""Keeps modules out of a process: libraries import them if they are there, for what this process never does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def kept_out(*names: str) -> Iterator[None]:
    """
    Let imports within this block find none of these modules; those that are imported already stay.

    It is for modules that a library does without: it looks once, at its own import. Later imports find them again.
    """
    modules: dict[str, Any] = sys.modules
    absent = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            if modules.get(name, name) is None:
                del modules[name]
