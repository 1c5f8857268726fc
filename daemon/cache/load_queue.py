"""
The queue of loads: a single load runs at a time, oldest first, and calls for the same model share it.

A load passes through these states; each `step` does one transition or one slice::

    waiting --> begun ---------> weighed -----------> finished: its tickets get a lease
                room for the     room for the bytes
                files' bytes     that it really takes

A load ends early in any state: with an error, which all its tickets get, or when its last ticket is cancelled. Its
generator is closed then, which lets go of the weights that it has read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from structlog.contextvars import bind_contextvars, reset_contextvars

from daemon.cache.load import Load, Loadable, Loaded, Progress, Stage, Ticket
from daemon.shared.error_frames import clear_frames

M = TypeVar("M")
S = TypeVar("S", bound=Loadable)


@dataclass(slots=True, eq=False)
class LoadJob(Generic[S, M]):
    """
    A load and the tickets that wait for it.

    Attributes:
        source: The model.
        key: Calls with the same key share the load.
        skip_warmup: Whether the first call wants no warm-up.
        tickets: The calls that wait; the first one started the load.
        steps: The generator, once it has begun.
        started_at: When it began, by the cache's clock.
        nbytes: Bytes that it is expected to take: those of the files, until those of the model are known.
        evicted: Names of models that made room for it.
    """

    source: S
    key: Hashable
    skip_warmup: bool
    tickets: list[Ticket[M]] = field(default_factory=list)
    steps: Load[M] | None = None
    started_at: float = 0.0
    nbytes: int = 0
    evicted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.nbytes = self.source.size_bytes

    def report(self, progress: Progress) -> None:
        """Set the progress of all tickets."""
        for ticket in self.tickets:
            ticket.progress = replace(progress, evicting=self.evicted)


class LoadQueue(Generic[S, M]):
    """
    Loads that run or wait. One thread.

    Args:
        begin: Makes room for the files' bytes and starts a load; an error fails it.
        weigh: Makes room for the bytes that the model really takes; an error fails the load.
        finish: Gets the loaded model. The load has left the queue by then and cannot be cancelled.
        on_free: Called after a load was abandoned or failed, to return its memory.
    """

    def __init__(
        self,
        begin: Callable[[LoadJob[S, M]], Load[M]],
        weigh: Callable[[LoadJob[S, M], int], None],
        finish: Callable[[LoadJob[S, M], Loaded[M]], None],
        on_free: Callable[[], None],
    ) -> None:
        self._begin = begin
        self._weigh = weigh
        self._finish = finish
        self._on_free = on_free
        self._jobs: dict[Hashable, LoadJob[S, M]] = {}
        self._waiting: deque[LoadJob[S, M]] = deque()
        self._active: LoadJob[S, M] | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def nbytes(self) -> int:
        """Bytes that the running load is expected to take. Room was made for them."""
        job = self._active
        return job.nbytes if job is not None and job.steps is not None else 0

    def join(self, key: Hashable, ticket: Ticket[M], source: S, skip_warmup: bool) -> None:
        """Let a ticket wait for the load of a key. The first ticket puts the load into the queue."""
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = LoadJob(source, key, skip_warmup)
            self._waiting.append(job)
        else:
            ticket.progress = job.tickets[0].progress
        job.tickets.append(ticket)
        ticket.wait_for(lambda waiting: self._leave(job, waiting))

    def step(self) -> None:
        """Do one slice of the oldest load. Log lines of the slice name the model."""
        if self._active is None and self._waiting:
            self._active = self._waiting.popleft()
        job = self._active
        if job is None:
            return
        try:
            loaded = self._advance(job)
        except Exception as error:
            self._fail(job, error)
            return
        if loaded is not None:
            self._forget(job)
            self._finish(job, loaded)

    def progress(self) -> list[tuple[S, Progress]]:
        """Return the loads and their progress, oldest first."""
        return [(job.source, job.tickets[0].progress) for job in self._in_order()]

    def check_integrity(self) -> None:
        """
        Check that the running and the waiting loads are those that calls find by their keys.

        Raises:
            AssertionError: If they disagree.
        """
        jobs = self._in_order()
        assert len(jobs) == len(self._jobs), "a load is lost"
        assert all(self._jobs.get(job.key) is job for job in jobs), "a load is not found by its key"
        assert all(job.tickets for job in jobs), "a load without tickets goes on"
        assert not any(ticket.done for job in jobs for ticket in job.tickets), "a ticket that has ended still waits"
        assert all(job.steps is None for job in self._waiting), "more than one load has begun"

    def _in_order(self) -> list[LoadJob[S, M]]:
        return [job for job in (self._active, *self._waiting) if job is not None]

    def _advance(self, job: LoadJob[S, M]) -> Loaded[M] | None:
        if job.steps is None:
            job.steps = self._begin(job)
            job.report(Progress(Stage.LOADING, 0, job.source.size_bytes))
            return None
        named = bind_contextvars(model=job.source.name)
        try:
            progress = next(job.steps)
        except StopIteration as end:
            loaded: Loaded[M] = end.value
            return loaded
        finally:
            reset_contextvars(**named)
        if progress.needs is not None:
            self._weigh(job, progress.needs)
        job.report(progress)
        return None

    def _leave(self, job: LoadJob[S, M], ticket: Ticket[M]) -> None:
        job.tickets.remove(ticket)
        if job.tickets:
            return
        self._forget(job)
        if job.steps is not None:
            job.steps.close()
            self._on_free()

    def _fail(self, job: LoadJob[S, M], error: Exception) -> None:
        self._forget(job)
        for ticket in job.tickets:
            ticket.fail(error)
        if job.steps is not None:
            job.steps.close()
        clear_frames(error)
        self._on_free()

    def _forget(self, job: LoadJob[S, M]) -> None:
        del self._jobs[job.key]
        if self._active is job:
            self._active = None
        else:
            self._waiting.remove(job)
