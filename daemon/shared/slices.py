"""Cooperative work: a generator that yields between its units, so that other work can run there."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias, TypeVar

R = TypeVar("R")

SHORT, LONG = False, True

Sliced: TypeAlias = Generator[bool, None, R]
"""
A generator that yields before each unit of work but the first: LONG if the unit needs a slice of its own, SHORT if it
can share a slice with others. Its return value is the result.
"""


def drain(work: Generator[object, None, R]) -> R:
    """Run work to its end, without a turn for anything else, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: R = end.value
            return result
