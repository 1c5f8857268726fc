"""Makes the Nth call of some functions fail, or only counts the calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Injected(Exception):
    """Stands for an error of the operating system or of MLX."""


class Nth:
    """
    Counts calls, and makes one of them fail.

    Args:
        fails: Number of the call that fails; 0 for none.
        error: Makes the error that it raises.
    """

    def __init__(self, fails: int, error: Callable[[], Exception]) -> None:
        self.calls = 0
        self._fails = fails
        self._error = error

    @property
    def reached(self) -> bool:
        """Whether the one that fails was called."""
        return self.calls >= self._fails

    def wrap(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts, fails when it is its turn, and does the plain one's work otherwise."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self._fails:
                raise self._error()
            return plain(*arguments, **options)

        return counted


@contextmanager
def failing(targets: list[tuple[Any, str]], fails: int, error: Callable[[], Exception] = Injected) -> Iterator[Nth]:
    """Make the Nth call of all these functions together fail within the block."""
    nth = Nth(fails, error)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in targets:
            patch.setattr(owner, name, nth.wrap(getattr(owner, name)))
        yield nth
