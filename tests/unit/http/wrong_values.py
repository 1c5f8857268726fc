"""Values of all types, and the places in a request that they can take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NUMBERS = [0, -1, 2**31, 2**63, 2**70, 1e300, 0.5]

VALUES: list[Any] = [None, True, *NUMBERS, "", "x", "\0", [], {}, [None], [[]], [1], ["x"], {"x": 1}, [{}]]
"""Values of all types; each takes the place of each value of a request."""


def places(value: Any, steps: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value in a document."""
    yield steps
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in items:
        yield from places(inner, (*steps, step))


def replaced(value: Any, steps: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a document with another value at a path."""
    if not steps:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[steps[0]] = replaced(value[steps[0]], steps[1:], new)
    return copy
