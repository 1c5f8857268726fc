"""
The places that models lie in: each is listed by a task of its own, and names that are not there get suggestions.

A task for each place, in a lane for each place: a disk that does not answer holds up its own place alone. After a few
seconds the other places are the answer, and that one is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from daemon.cache.listing import (
    ELSEWHERE,
    DiskModel,
    close_names,
    described,
    embedded_model,
    hub_models,
    hub_names,
    root_folders,
    root_models,
)
from daemon.cache.resolver import EMBEDDED, EMBEDDED_PATH
from daemon.engine.background.background import Background
from daemon.engine.background.task import LIST, Pending, Task, Waiting, until
from daemon.shared.errors import Reason, SidecarError

ANSWER_SECONDS = 5.0
"""A place that is not listed within so long is unread."""
NAMES_SECONDS = 1.0
"""Seconds within which the names of models are read for a suggestion."""
_MISSING = (Reason.MODEL_NOT_FOUND, Reason.MODEL_NOT_CACHED)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unread:
    """A place that could not be read, and why."""

    path: Path
    reason: str


class Places:
    """
    The places that have models.

    Args:
        hub: The Hub's local cache.
        roots: Directories that models may lie below.
        aliases: Short names for models.
        background: The threads that read.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        hub: Path,
        roots: Sequence[Path],
        aliases: Mapping[str, str],
        background: Background,
        clock: Callable[[], float],
    ) -> None:
        self.aliases = aliases
        self._hub = hub
        self._roots = roots
        self._background = background
        self._clock = clock

    def listed(self, more: Sequence[Path]) -> Waiting[tuple[list[DiskModel], list[Unread]]]:
        """
        List all places and some directories, and return their models and the places that could not be read in time.

        Args:
            more: Directories with a model each.
        """
        work: dict[Path, Callable[[], list[DiskModel]]] = {EMBEDDED_PATH: embedded_model}
        work[self._hub] = partial(hub_models, self._hub)
        work |= {root: partial(root_models, root) for root in self._roots}
        for path in more:
            work.setdefault(path, partial(_one, path))
        found, unread = yield from self._gathered(work, ANSWER_SECONDS)
        return [model for models in found for model in models], unread

    def suggested(self, name: str, error: SidecarError) -> Waiting[SidecarError]:
        """Return the error for a model that is not there, with the names that may have been meant."""
        if error.reason not in _MISSING or error.field == "adapter":
            return error
        work: dict[Path, Callable[[], list[str]]] = {
            self._hub: lambda: close_names(name, hub_names(self._hub)),
            EMBEDDED_PATH: lambda: close_names(name, [EMBEDDED, *self.aliases]),
        }
        for root in self._roots:
            work[root] = partial(_close_folders, name, root)
        found, _unread = yield from self._gathered(work, NAMES_SECONDS)
        near = close_names(name, [other for names in found for other in names])
        if not near:
            return error
        text = f"{error.message}; did you mean {' or '.join(near)}?"
        # Another error: all callers of a search get the same one.
        return SidecarError(
            error.reason, text, metadata=error.metadata, retry_after=error.retry_after, field=error.field
        )

    def _gathered(self, work: Mapping[Path, Callable[[], T]], seconds: float) -> Waiting[tuple[list[T], list[Unread]]]:
        """Do work for each place at the same time, and return the results and the places without one."""
        end = self._clock() + seconds
        results: list[T] = []
        pending: dict[Path, Pending[T]] = {}
        for path, read in work.items():
            pending[path] = self._background.run(Task(LIST, str(path), ("list", path), read))
        try:
            yield from until(lambda: all(place.done for place in pending.values()) or self._clock() >= end)
        finally:
            for place in pending.values():
                place.abandoned = True
        unread = []
        for path, place in pending.items():
            if not place.done:
                reason = f"it did not answer within {seconds:g} s; its disk or network share may be gone"
                unread.append(Unread(path, reason))
                continue
            try:
                results.append((yield from place.wait()))
            except SidecarError as error:
                unread.append(Unread(path, error.message))
        return results, unread


def _one(path: Path) -> list[DiskModel]:
    return [described(DiskModel(str(path), path, ELSEWHERE))]


def _close_folders(name: str, root: Path) -> list[str]:
    return close_names(name, [str(path) for path in root_folders(root)])
