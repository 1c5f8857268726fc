"""The size of a module before it takes memory: how many modules it has, which arrays, and how many bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn

MOST_MODULES = 50_000
"""Modules of a model. The largest known models have a few thousand; so many cost some two seconds of Python."""


class TooManyModulesError(ValueError):
    """A configuration asks for more modules than any model has."""


def arrays(module: nn.Module) -> list[mx.array]:
    """
    Return all arrays of a module, each once: its parameters, and arrays that it computes itself, such as tables.

    A module is a dictionary of arrays, modules, lists and dictionaries. It is walked without recursion, because a
    configuration says how deep it is.
    """
    by_id: dict[int, mx.array] = {}
    seen: set[int] = set()
    pending: list[Any] = [module]
    while pending:
        value = pending.pop()
        if isinstance(value, mx.array):
            by_id.setdefault(id(value), value)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(reversed(list(value.values() if isinstance(value, dict) else value)))
    return list(by_id.values())


def nbytes(of: Iterable[mx.array]) -> int:
    """Return the bytes that arrays will take. Not `array.nbytes`, which overflows for shapes beyond 64 bits."""
    return sum(prod(array.shape) * array.itemsize for array in of)


@contextmanager
def bounded_modules() -> Iterator[None]:
    """
    Let at most `MOST_MODULES` modules be constructed in a block.

    A configuration gives the number of layers in many places and nestings, and mlx-lm has a class for each
    architecture. All their modules pass `nn.Module.__init__`, and MLX has no hook for it: so it is replaced for the
    length of the block. The change is global, but only the MLX thread constructs modules.

    Raises:
        TooManyModulesError: At the first module too many.
    """
    construct = nn.Module.__init__
    left = MOST_MODULES

    def counted(self: nn.Module) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise TooManyModulesError(f"its configuration asks for more than {MOST_MODULES} modules")
        construct(self)

    nn.Module.__init__ = counted
    try:
        yield
    finally:
        nn.Module.__init__ = construct
