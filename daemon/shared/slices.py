"""Work in pieces, between which others can have their turns."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

R = TypeVar("R")

SHORT, LONG = False, True

Sliced: TypeAlias = Generator[bool, None, R]
"""
Work that returns its result, and yields before each further piece whether that is SHORT or LONG, for whoever joins
short ones to slices: no earlier piece tells how long the next one takes.
"""


def drain(work: Generator[object, None, R]) -> R:
    """Run work to its end, without a turn for anything else, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: R = end.value
            return result
