"""What a module is made of, told before any of it is evaluated: MLX's arrays are promises until then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn

MOST_MODULES = 50_000
"""Of one model. The largest that are known have a few thousand; as many as this cost some two seconds of Python."""


class TooManyModulesError(ValueError):
    """A configuration asks for more modules than any model has."""


def arrays(module: nn.Module) -> list[mx.array]:
    """Return all arrays of a module, each once: its parameters, and what it computes for itself, such as tables."""
    found: dict[int, mx.array] = {}
    seen: set[int] = set()
    pending: list[Any] = [module]
    while pending:
        value = pending.pop()
        if isinstance(value, mx.array):
            found.setdefault(id(value), value)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(reversed(list(value.values() if isinstance(value, dict) else value)))
    return list(found.values())


def nbytes(of: Iterable[mx.array]) -> int:
    """Return the bytes that arrays will take. What MLX itself says of large ones has overflown 64 bits."""
    return sum(prod(array.shape) * array.itemsize for array in of)


@contextmanager
def bounded_modules(most: int = MOST_MODULES) -> Iterator[None]:
    """
    Let no more modules be constructed within the block. Only the MLX thread constructs any.

    Raises:
        TooManyModulesError: At the first one too many.
    """
    construct = nn.Module.__init__
    left = most

    def counted(self: nn.Module) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise TooManyModulesError(f"its configuration asks for more than {most} modules")
        construct(self)

    nn.Module.__init__ = counted
    try:
        yield
    finally:
        nn.Module.__init__ = construct
