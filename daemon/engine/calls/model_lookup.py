"""Finds models on other threads: at once if that is quick, or in one search for all calls that ask for the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

from daemon.cache.callbacks import ignore
from daemon.cache.digests import TakesLong
from daemon.cache.identity import ModelSource
from daemon.cache.load import Progress, Stage
from daemon.cache.resolver import EMBEDDED, Resolver, Wanted
from daemon.engine.background.background import Background
from daemon.engine.background.task import FETCH, LOOKUP, READ, Pending, Task, Waiting
from daemon.engine.calls.giants import Giants
from daemon.engine.calls.model_places import Places
from daemon.shared import liveness
from daemon.shared.errors import Reason, SidecarError

Found = ModelSource | int
"""A model; or, for a call that asked for an estimate, the bytes of weights of a model that is not on this machine."""

T = TypeVar("T")


class ModelLookup:
    """
    Finds models by name. Runs on the MLX thread; the work does not.

    Args:
        resolver: Does the work.
        background: The threads that it is done on.
        places: Know the names that may have been meant.
    """

    def __init__(self, resolver: Resolver, background: Background, places: Places) -> None:
        self._resolver = resolver
        self._background = background
        self._places = places
        self._searches: dict[Wanted, _Search] = {}
        self._giants = Giants()

    def prefer(self, model: str, revision: str) -> None:
        """Resolve a model of the Hub to this revision from now on, unless a call names another one."""
        self._resolver.prefer(model, revision)

    def find(
        self, wanted: Wanted, prepare: Callable[[Found], Task[T]], progress: Callable[[Progress], None] = ignore
    ) -> Waiting[T]:
        """
        Find a model, and return the result of the task that `prepare` makes of it.

        If the call is closed meanwhile, the work is left out or, once no other call waits for it, abandoned.

        Args:
            wanted: What to find.
            prepare: Returns what is to be done with the model on other threads. Called on any thread; never blocks.
            progress: Called on the MLX thread while the model is downloaded or read.

        Raises:
            SidecarError: Why there is no result; where there is no such model, with names that may have been meant, or
                where the model was to be updated, why it was not.
        """

        def quick() -> T | _Long | Task[T | _Long]:
            # The task goes on with `prepare` without a way back to the MLX thread, which may be in a long step.
            try:
                source = self._resolver.resolve(wanted)
            except TakesLong as takes:
                return _Long(takes.nbytes)
            return cast("Task[T | _Long]", prepare(source))

        task: Task[T | _Long] = Task(LOOKUP, wanted.name, wanted.name, quick)
        try:
            result = yield from self._background.run(task).wait()
            if not isinstance(result, _Long):
                return result
            found = yield from self._join(wanted, progress, result.nbytes).wait()
            return (yield from self._background.run(prepare(found)).wait())
        except SidecarError as error:
            failure = error.with_traceback(None)
        try:
            raise failure if wanted.update else (yield from self._places.suggested(wanted.name, failure))
        finally:
            del failure  # its traceback will have this frame; see `Pending.wait`

    def _join(self, wanted: Wanted, progress: Callable[[Progress], None], nbytes: int | None) -> _Waiter:
        """Wait for the search that is under way, or begin a new one."""
        waiter = _Waiter(progress)
        search = self._searches.get(wanted)
        if search is None or not search.join(waiter):
            search = self._searches[wanted] = _Search(waiter, self._background.post)
            self._begin(wanted, search, nbytes)
        return waiter

    def _begin(self, wanted: Wanted, search: _Search, nbytes: int | None) -> None:
        local = wanted.name == EMBEDDED or wanted.name.startswith("/")
        kind = READ if local else FETCH
        # Calls that want the model as it is do not wait for what may be hours of a download.
        lane = ("update", wanted.name) if wanted.update else wanted.name
        task: Task[Found] = Task(kind, wanted.name, lane, partial(self._search, wanted, search))

        def end(outcome: Found | SidecarError) -> None:
            free()
            if self._searches.get(wanted) is search:
                del self._searches[wanted]
            for waiter in search.end():
                waiter.end(outcome)

        def start() -> None:
            ended: Pending[Found] = Pending(end)
            self._background.run(task, ended)

        free = self._giants.begin(nbytes, start)

    def _search(self, wanted: Wanted, search: _Search) -> Found:
        search.sign = liveness.current()
        try:
            return self._resolver.resolve(wanted, search)
        except SidecarError as error:
            if wanted.allow_download or not wanted.estimate or error.reason is not Reason.MODEL_NOT_CACHED:
                raise
            return self._resolver.planned_bytes(wanted)


@dataclass(frozen=True, slots=True)
class _Long:
    """
    Stands for a model that takes long to find.

    Attributes:
        nbytes: Bytes that are to be read or downloaded; None if that is not known.
    """

    nbytes: int | None


class _Waiter(Pending[Found]):
    """A call's place in a search."""

    def __init__(self, progress: Callable[[Progress], None]) -> None:
        super().__init__()
        self._progress = progress

    def end(self, outcome: Found | SidecarError) -> None:
        """End with the outcome of the search."""
        if isinstance(outcome, SidecarError):
            self.fail(outcome)
        else:
            self.succeed(outcome)

    def report(self, progress: Progress) -> None:
        """Tell the call that the search moved on; nothing once it has ended."""
        if not (self.done or self.abandoned):
            self._progress(progress)


class _Search:
    """
    One search and the calls that wait for it; the watcher of the resolver.

    A search that no call waits for any more is abandoned: its next report raises in the thread that works, and no
    call can join it. That follows from the calls alone: on ranks of a group, threads report at other moments.

    Args:
        first: The call that began it.
        post: Runs a function on the MLX thread; any thread.

    Attributes:
        sign: Tells that it moves on; the Hub's library reports from threads of its own.
    """

    def __init__(self, first: _Waiter, post: Callable[[Callable[[], None]], None]) -> None:
        self.sign: liveness.Sign = liveness.current()
        self._post = post
        self._waiters = [first]
        self._last: Progress | None = None
        self._lock = threading.Lock()

    def join(self, waiter: _Waiter) -> bool:
        """Add a call, which gets the latest progress at once; False if the search is abandoned."""
        with self._lock:
            if not self._calls():
                return False
            self._waiters.append(waiter)
            last = self._last
        if last is not None:
            waiter.report(last)
        return True

    def end(self) -> list[_Waiter]:
        """Return the calls that wait for it; it has ended."""
        with self._lock:
            return self._calls()

    def downloading(self, done: int, total: int) -> None:
        """Report the bytes of a download; any thread."""
        self._report(Progress(Stage.DOWNLOADING, done, total))

    def reading(self, done: int, total: int) -> None:
        """Report the bytes of weights that were read to name them; any thread."""
        self._report(Progress(Stage.QUEUED, done, total))

    def _report(self, progress: Progress) -> None:
        self.sign()
        with self._lock:
            waiters = self._calls()
            if not waiters:
                raise SidecarError(Reason.INTERNAL, "no call waits for this search any more")
            self._last = progress
        for waiter in waiters:
            self._post(partial(waiter.report, progress))

    def _calls(self) -> list[_Waiter]:
        """Return the calls that wait for it, and forget the others; for the thread that has the lock."""
        self._waiters = [waiter for waiter in self._waiters if not waiter.abandoned]
        return list(self._waiters)
