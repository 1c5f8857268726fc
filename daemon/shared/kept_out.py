"""Keeps modules out of a process: libraries import them if they are there, for what this process never does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any


def unused_digests() -> tuple[str, ...]:
    """Return OpenSSL's digests, as a module to keep out, where this Python has its own. Fedora's has not."""
    return ("_hashlib",) if all(map(find_spec, ("_md5", "_sha1", "_sha3"))) else ()


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
