"""What makes the load of a model that of one rank of several, which all load a part of it at the same time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

from daemon.cache.identity import ModelSource
from daemon.cache.mlx.load_errors import load_errors
from daemon.kv.mlx.layout import Layout

T = TypeVar("T")


class Shard(Protocol):
    """The part of a rank, and what the ranks have to agree on while they load."""

    def cut(self, source: ModelSource, model: Any) -> None:
        """
        Cut a module with lazy arrays, so that this rank's part is left in it.

        Raises:
            SidecarError: MODEL_UNSUPPORTED if it cannot be cut so.
        """

    def most(self, value: int) -> int:
        """Return the largest value of all ranks, which ask at the same place."""

    def together(self, source: ModelSource, work: Callable[[], T]) -> T:
        """
        Do what each rank does by itself, and return this rank's result. What fails on one rank fails on all.

        Raises:
            SidecarError: That of the first rank that failed; see `load_errors`.
        """

    def noted(self) -> AbstractContextManager[None]:
        """Tell the other ranks what fails in a block in which they meet: if it fails here alone, they wait in vain."""

    def alike(self, source: ModelSource, layout: Layout) -> Layout:
        """
        Compare how the ranks keep the KV of their parts, and return how each of them bills it.

        Raises:
            SidecarError: MODEL_UNSUPPORTED if it differs by more than the number of layers.
        """


class _Whole:
    """The load of a whole model, by this process alone."""

    def cut(self, source: ModelSource, model: Any) -> None:
        """Leave all of the module."""

    def most(self, value: int) -> int:
        """Return the value: there is no other."""
        return value

    def together(self, source: ModelSource, work: Callable[[], T]) -> T:
        """Do the work."""
        with load_errors(source):
            return work()

    def noted(self) -> AbstractContextManager[None]:
        """Tell nothing: there is no other."""
        return nullcontext()

    def alike(self, source: ModelSource, layout: Layout) -> Layout:
        """Accept any: there is no other."""
        return layout


WHOLE: Shard = _Whole()
"""The load of a whole model."""
