"""The threads of one pool: they run jobs in the order of the lanes, and a hanging thread is replaced."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars

from daemon.engine.background.lanes import Job, Lanes
from daemon.engine.background.task import Task
from daemon.shared import liveness
from daemon.shared.log_fields import FIELDS

log = structlog.get_logger()

_Inbox = SimpleQueue[Job | None]


class Threads:
    """
    Starts threads when jobs need them, and lets spare threads end. Any thread may call this.

    Args:
        name: What they are called.
        lanes: Decides which job is next.
        keep: Threads that stay when no job waits.
        go_on: Takes a job and the task that follows, if that belongs to another pool or lane.
    """

    def __init__(self, name: str, lanes: Lanes, keep: int, go_on: Callable[[Job, Task[object]], None]) -> None:
        self._name = name
        self._lanes = lanes
        self._keep = keep
        self._go_on = go_on
        self._lock = threading.Lock()
        self._idle: list[_Inbox] = []
        self._closed = False

    def add(self, job: Job) -> None:
        """Run a job when its turn comes; it fails at once if its lane is closed."""
        with self._lock:
            if self._closed:
                return
            refusal = self._lanes.refusal(job.task.lane)
            if refusal is None:
                self._lanes.add(job)
        if refusal is not None:
            job.failed(refusal)
        self._begin()

    def tick(self, seconds: float) -> None:
        """Let time pass: write off jobs that hang for too long, and begin others in the places of late jobs."""
        with self._lock:
            hanging = self._lanes.tick(seconds)
            stuck = len(self._lanes.stuck)
        for job, behind in hanging:
            task = job.task
            log.warning(
                "background_work_abandoned",
                work=task.kind.name,
                model=task.model,
                silent_s=round(job.silent, 3),
                calls=1 + len(behind),
                stuck=stuck,
            )
            for failing in (job, *behind):
                failing.failed(task.stuck())
        self._begin()

    def stuck(self) -> list[Job]:
        """Return the jobs that were written off and still occupy a thread."""
        with self._lock:
            return self._lanes.stuck

    def close(self) -> None:
        """Drop jobs that have not begun; running jobs end with the process."""
        with self._lock:
            self._closed = True
            self._lanes.drop()
            idle, self._idle = self._idle, []
        for inbox in idle:
            inbox.put(None)

    def _begin(self) -> None:
        """Give a thread to each job that may begin now."""
        while True:
            with self._lock:
                job = self._lanes.next()
                inbox = self._idle.pop() if job is not None and self._idle else None
            if job is None:
                return
            if inbox is not None:
                inbox.put(job)
            else:
                self._start(job)

    def _start(self, job: Job) -> None:
        inbox: _Inbox = SimpleQueue()
        inbox.put(job)  # a thread keeps its arguments to its end, and a job has a request
        # Not an executor of the standard library: at its end the process would wait for hanging threads too.
        thread = threading.Thread(target=self._run, args=(inbox,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more
            self._end(job)
            job.failed(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))

    def _run(self, inbox: _Inbox) -> None:
        job = inbox.get()
        while job is not None:
            self._work(job)
            clear_contextvars()
            with self._lock:
                job = self._lanes.next()
                if job is None:
                    if self._closed or len(self._idle) >= self._keep:
                        return
                    self._idle.append(inbox)
            if job is None:
                job = inbox.get()

    def _work(self, job: Job) -> None:
        """Do a job: its task, and the tasks that follow in the same lane. Log lines meanwhile name its model."""
        if FIELDS["model"](job.task.model):
            bind_contextvars(model=job.task.model)
        error: BaseException | None = None
        result: object = job.task
        with liveness.watched(job.sign):
            while isinstance(result, Task) and _same_place(result, job.task) and not job.written_off:
                with self._lock:
                    job.task = result
                    job.silent = 0.0
                try:
                    result = result.work()
                except BaseException as caught:  # a panic of Rust code is no Exception
                    error, result = caught, None
        if self._end(job):
            return
        if error is not None:
            job.failed(error)
        elif isinstance(result, Task):
            self._go_on(job, result)
        else:
            job.done(result)

    def _end(self, job: Job) -> bool:
        """Free a job's place, and tell whether it was written off: then its calls have failed already."""
        with self._lock:
            self._lanes.end(job)
        if job.written_off:
            log.info("background_work_recovered", work=job.task.kind.name, model=job.task.model)
        return job.written_off


def _same_place(task: Task[object], other: Task[object]) -> bool:
    return task.kind.pool is other.kind.pool and task.lane == other.lane
