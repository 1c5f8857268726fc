"""
Lanes: queues of jobs that share a pool of threads fairly, and detection of jobs that hang. Pure; the owner locks.

A job's states:

    waiting ──next()──> running ──silent for `late` s──> late ──silent for `limit` s──> written off
       │                   │                               │                                │
       └── drop(), over    └───────── end(): the lane goes on, or opens again ──────────────┘

A running job has one of `places`. A late job gives its place to another and keeps its thread. A job that is written
off fails, with all that wait behind it, and its lane is closed until its thread comes back. A sign of life makes a
late job a running one again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from daemon.engine.background.task import AnyTask
from daemon.shared.errors import SidecarError


def _never() -> bool:
    return False


@dataclass(slots=True, eq=False)
class Job:
    """
    A task that waits or runs, and the functions that take its end.

    Attributes:
        task: The current task; another of the same lane and pool may follow in the same job.
        done: Takes its result; called at most once, and not after `failed`.
        failed: Takes its error; called at most once, and not after `done`.
        over: Whether its call has ended; such a job is not begun.
        silent: Seconds without a sign of life.
        written_off: Whether its call has failed because the job hangs.
    """

    task: AnyTask
    done: Callable[[object], None]
    failed: Callable[[BaseException], None]
    over: Callable[[], bool] = _never
    silent: float = 0.0
    written_off: bool = False

    def sign(self) -> None:
        """Note a sign of life; any thread."""
        self.silent = 0.0


@dataclass(slots=True)
class _Lane:
    waiting: deque[Job] = field(default_factory=deque)
    running: Job | None = None


class Lanes:
    """
    Decides which job gets a thread next. Lanes take turns, and each runs one job at a time.

    So a job that hangs, or is slow, holds up its own lane alone, and occupies one thread.

    Args:
        places: Most jobs that run at the same time, late ones not counted.
        most: Most jobs that have a thread, late and written off ones counted.
        late: Seconds after which a silent job is late.
    """

    def __init__(self, places: int, most: int, late: float) -> None:
        self._places = places
        self._most = most
        self._late = late
        self._lanes: dict[Hashable, _Lane] = {}
        self._ready: deque[Hashable] = deque()
        self._busy: list[Job] = []

    @property
    def stuck(self) -> list[Job]:
        """Jobs that were written off and still occupy a thread."""
        return [job for job in self._busy if job.written_off]

    def refusal(self, lane: Hashable) -> SidecarError | None:
        """Return the error for a job that wants to join a closed lane; None if the lane is open."""
        job = self._lanes[lane].running if lane in self._lanes else None
        return job.task.stuck() if job is not None and job.written_off else None

    def add(self, job: Job) -> None:
        """Let a job wait in its lane, which must be open; see `refusal`."""
        lane = self._lanes.setdefault(job.task.lane, _Lane())
        lane.waiting.append(job)
        if lane.running is None and len(lane.waiting) == 1:
            self._ready.append(job.task.lane)

    def next(self) -> Job | None:
        """Return the job to begin now, of the lane that had its last turn longest ago; None if no job may begin."""
        while self._ready and self._free():
            name = self._ready.popleft()
            lane = self._lanes[name]
            while lane.waiting:
                job = lane.waiting.popleft()
                if not job.over():
                    lane.running = job
                    self._busy.append(job)
                    return job
            del self._lanes[name]
        return None

    def end(self, job: Job) -> None:
        """Note that a job has left its thread; its lane goes on, or opens again."""
        self._busy.remove(job)
        name = job.task.lane
        lane = self._lanes[name]
        lane.running = None
        if lane.waiting:
            self._ready.append(name)
        else:
            del self._lanes[name]

    def tick(self, seconds: float) -> list[tuple[Job, list[Job]]]:
        """
        Let time pass, and write off the jobs that were silent for too long.

        Returns:
            Each job written off by this call, with the jobs that waited behind it and fail too.
        """
        hanging = []
        for job in self._busy:
            job.silent += seconds
            if job.silent >= job.task.kind.limit and not job.written_off:
                job.written_off = True
                waiting = self._lanes[job.task.lane].waiting
                hanging.append((job, list(waiting)))
                waiting.clear()
        return hanging

    def drop(self) -> None:
        """Forget all jobs that wait."""
        self._ready.clear()
        for lane in self._lanes.values():
            lane.waiting.clear()
        self._lanes = {name: lane for name, lane in self._lanes.items() if lane.running is not None}

    def _free(self) -> bool:
        lively = sum(job.silent < self._late for job in self._busy)
        return lively < self._places and len(self._busy) < self._most
