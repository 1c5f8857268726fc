"""Finds models off the MLX thread: at once if that is quick, or else in one search for all who ask for the same."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from daemon.cache.digests import TakesLong
from daemon.cache.identity import ModelSource
from daemon.cache.load import Progress, Stage
from daemon.cache.resolver import EMBEDDED, Resolver, Wanted
from daemon.engine.background.background import Background
from daemon.engine.background.task import FETCH, LOOKUP, READ, Task
from daemon.engine.calls.giants import Giants
from daemon.shared import liveness
from daemon.shared.errors import Reason, SidecarError

Found = ModelSource | int
"""A model, or the bytes of weights of one that is not on this machine, for those who asked for an estimate."""


T = TypeVar("T")


class Waiter(Protocol[T]):
    """Who asks for a model. Called on the MLX thread, but for `over`, `progress` and `prepare`."""

    @property
    def over(self) -> bool:
        """Whether it no longer waits."""

    def progress(self, progress: Progress) -> None:
        """Called while its model is downloaded or read; any thread."""

    def prepare(self, found: Found) -> Task[T]:
        """Return what is to be done with its model off the MLX thread. Never blocks."""

    def ready(self, result: T) -> None:
        """Called with the result of what `prepare` returned; an error that it raises is given to `fail`."""

    def fail(self, error: SidecarError) -> None:
        """Called if there is none."""


class ModelLookup:
    """
    Runs on the MLX thread; the work does not.

    Args:
        resolver: Does the work.
        background: The threads that it is done on.
    """

    def __init__(self, resolver: Resolver, background: Background) -> None:
        self._resolver = resolver
        self._background = background
        self._searches: dict[Wanted, _Search] = {}
        self._giants = Giants()

    def find(self, wanted: Wanted, seeker: Waiter[T]) -> None:
        """Find a model for somebody. When all who ask for it are over, the work is abandoned."""

        def quick() -> T | _Long | Task[T | _Long]:
            try:
                source = self._resolver.resolve(wanted)
            except TakesLong as takes:
                return _Long(takes.nbytes)
            return cast("Task[T | _Long]", seeker.prepare(source))

        def then(result: T | _Long) -> None:
            if not isinstance(result, _Long):
                seeker.ready(result)
            elif not seeker.over:
                self._join(wanted, seeker, result.nbytes)

        task: Task[T | _Long] = Task(LOOKUP, wanted.name, wanted.name, quick)
        self._background.run(task, then, seeker.fail, lambda: seeker.over)

    def _join(self, wanted: Wanted, seeker: Waiter[Any], nbytes: int | None) -> None:
        search = self._searches.get(wanted)
        if search is not None and search.join(seeker):
            return
        search = self._searches[wanted] = _Search(seeker)

        def found(result: Found) -> None:
            end()
            for one in self._end(wanted, search):
                self._prepare(one, result)

        def failed(error: SidecarError) -> None:
            end()
            for one in self._end(wanted, search):
                one.fail(error)

        local = wanted.name == EMBEDDED or wanted.name.startswith("/")
        kind = READ if local else FETCH
        task: Task[Found] = Task(kind, wanted.name, wanted.name, partial(self._search, wanted, search))

        def start() -> None:
            self._background.run(task, found, failed)

        end = self._giants.begin(nbytes, start)

    def _prepare(self, seeker: Waiter[T], found: Found) -> None:
        self._background.run(seeker.prepare(found), seeker.ready, seeker.fail, lambda: seeker.over)

    def _search(self, wanted: Wanted, search: _Search) -> Found:
        search.sign = liveness.current()
        try:
            return self._resolver.resolve(wanted, search)
        except SidecarError as error:
            if not wanted.estimate or error.reason is not Reason.MODEL_NOT_CACHED:
                raise
            return self._resolver.planned_bytes(wanted)

    def _end(self, wanted: Wanted, search: _Search) -> list[Waiter[Any]]:
        """Close a search and return those who wait for it."""
        if self._searches.get(wanted) is search:
            del self._searches[wanted]
        return search.end()


@dataclass(frozen=True, slots=True)
class _Long:
    """
    Stands for a model that takes long to find.

    Attributes:
        nbytes: How much is to be read or downloaded; None if that is not known.
    """

    nbytes: int | None


class _Search:
    """
    One search and those who wait for it; what the resolver calls a watcher.

    It is abandoned by raising in the thread that works, at its next report, once nobody waits. From then on nobody can
    join it any more.

    Attributes:
        sign: Tells that it moves on; the Hub's library reports from threads of its own.
    """

    def __init__(self, first: Waiter[Any]) -> None:
        self.sign: liveness.Sign = liveness.current()
        self._seekers = [first]
        self._abandoned = False
        self._last: Progress | None = None
        self._lock = threading.Lock()

    def join(self, seeker: Waiter[Any]) -> bool:
        """Let somebody wait too; False if the search was abandoned."""
        with self._lock:
            if self._abandoned:
                return False
            self._seekers.append(seeker)
            last = self._last
        if last is not None:
            seeker.progress(last)
        return True

    def end(self) -> list[Waiter[Any]]:
        """Return those who wait."""
        with self._lock:
            self._abandoned = True
            return [seeker for seeker in self._seekers if not seeker.over]

    def downloading(self, done: int, total: int) -> None:
        """Tell all that a download moved on."""
        self._report(Progress(Stage.DOWNLOADING, done, total))

    def reading(self, done: int, total: int) -> None:
        """Tell all that weights are read to name them."""
        self._report(Progress(Stage.QUEUED, done, total))

    def _report(self, progress: Progress) -> None:
        self.sign()
        with self._lock:
            self._seekers = [seeker for seeker in self._seekers if not seeker.over]
            if not self._seekers:
                self._abandoned = True
                raise SidecarError(Reason.INTERNAL, "nobody waits for it any more")
            self._last = progress
            seekers = list(self._seekers)
        for seeker in seekers:
            seeker.progress(progress)
