"""Pools of threads for work off the MLX thread, such as lookups and tokenising; results return to the MLX thread."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TypeVar

import structlog

from daemon.engine.background.answers import Answers, Posted
from daemon.engine.background.lanes import Job, Lanes
from daemon.engine.background.task import TEMPLATE, Pending, Pool, Task
from daemon.engine.background.threads import Threads
from daemon.shared.errors import Reason, SidecarError
from daemon.shared.log_fields import refusal
from daemon.shared.machine_faults import machine_fault

LATE_SECONDS = 1.0
"""After so long without a sign of life, a job gives its place to another: it probably waits and does not compute."""
MOST_THREADS = 32
"""Of one pool, hanging threads included. The supervisor restarts an engine whose pools together hang with fewer."""
TICK_SECONDS = 2.0
"""Most time that may pass between two ticks: if more did, the process was stopped or the machine slept."""

_PLACES = {Pool.FILES: 2, Pool.LISTS: 2, Pool.PROMPTS: 2, Pool.LONG: 4, Pool.DISK: 3}
"""Jobs that run at the same time, by pool; that of templates is the number of worker processes."""

log = structlog.get_logger()

T = TypeVar("T")


class Background:
    """
    Pools of threads, so that lookups, prompts, templates and downloads do not wait for each other.

    In each pool, lanes take turns: a model that is slow, or on a disk that hangs, holds up its own calls alone.

    Args:
        post: Runs a function on the MLX thread; any thread may call it.
        clock: Seconds that never go back.
        renderers: Chat templates that can be rendered at the same time.
        answers: Takes the results; None to post them at once.

    Attributes:
        post: Runs a function on the MLX thread; any thread may call it.
    """

    def __init__(
        self,
        post: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
        renderers: int = 1,
        answers: Answers | None = None,
    ) -> None:
        self.post = post
        self._answers = answers or Posted(post)
        self._clock = clock
        self._ticked = clock()
        lanes = {pool: Lanes(places, MOST_THREADS, LATE_SECONDS) for pool, places in _PLACES.items()}
        # A template gives no sign of life while it computes, and no process is free to take its place.
        lanes[Pool.TEMPLATES] = Lanes(renderers, MOST_THREADS, TEMPLATE.limit)
        keep = {**_PLACES, Pool.TEMPLATES: renderers}
        self._threads = {pool: Threads(pool.name.lower(), lanes[pool], keep[pool], self._go_on) for pool in Pool}

    def run(self, task: Task[T], pending: Pending[T] | None = None) -> Pending[T]:
        """
        Run a task and those that follow it. The MLX thread calls this.

        Args:
            task: The first task. If its call has abandoned the result before it begins, it is left out.
            pending: Gets the result, on the MLX thread; None makes one.

        Returns:
            The result to wait for. Its error is MODEL_NOT_RESPONDING if a task hangs.
        """
        result = Pending[T]() if pending is None else pending

        def finish(value: T) -> None:
            try:
                result.succeed(value)
            except Exception as error:  # of what follows the result; it ends this call alone
                result.fail(as_sidecar_error(error))

        ticket = self._answers.ticket(task.name, result.fail, lambda: result.abandoned)

        def done(value: T) -> None:
            self._answers.done(ticket, lambda: finish(value), value)

        def fail(error: BaseException) -> None:
            self._answers.failed(ticket, result.fail, as_sidecar_error(error))

        self._add(Job(task, done, fail, lambda: result.abandoned))  # type: ignore[arg-type]  # that of its last task
        return result

    def tick(self) -> None:
        """Write off work that hangs; to be called about once a second."""
        now = self._clock()
        passed, self._ticked = min(TICK_SECONDS, now - self._ticked), now
        for threads in self._threads.values():
            threads.tick(passed)

    def stuck(self) -> list[Job]:
        """Return the jobs that were written off and still occupy a thread."""
        return [job for threads in self._threads.values() for job in threads.stuck()]

    def close(self) -> None:
        """Drop jobs that have not begun; running jobs end with the process."""
        for threads in self._threads.values():
            threads.close()

    def _add(self, job: Job) -> None:
        self._threads[job.task.kind.pool].add(job)

    def _go_on(self, job: Job, task: Task[object]) -> None:
        self._add(Job(task, job.done, job.failed, job.over))


def as_sidecar_error(error: BaseException) -> SidecarError:
    """Return an error as the caller may see it. The text and origin of an unexpected error go to the log alone."""
    if isinstance(error, SidecarError):
        return error
    fault = machine_fault(error, "the engine cannot go on with this call")
    if fault is not None:
        log.warning("machine_fault", **refusal(fault))
        return fault
    error_id = secrets.token_hex(6)
    log.error("unexpected_error", error_id=error_id, exc_info=error)
    kind = type(error).__name__
    return SidecarError(
        Reason.INTERNAL,
        f"an unexpected {kind} occurred; the daemon's log has it under id {error_id}",
        metadata={"error_id": error_id, "type": kind},
    )
