"""Lanes: which of the jobs that wait for a thread is next, and which hang. Pure; its owner has the lock."""

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
    A task that waits or runs, and who waits for it.

    Attributes:
        task: What is done; another one of the same lane and pool may follow in the same job.
        done: Takes its result; called at most once, and not after `failed`.
        failed: Takes its error; called at most once, and not after `done`.
        over: Whether its caller has gone; such a job is not begun.
        silent: Seconds without a sign of life.
        written_off: Whether its callers were told that it hangs.
    """

    task: AnyTask
    done: Callable[[object], None]
    failed: Callable[[Exception], None]
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
    Lanes take turns, and each has one job at a time. So what hangs, or is slow, holds up its own lane.

    A job that gives no sign of life for a while is late: its place goes to another, and it has its thread for itself.
    One that gives none for longer than its kind may is written off: it and those behind it fail. Its lane stays closed,
    and costs no other thread, until it comes back after all.

    Args:
        places: Jobs that run at the same time and are not late.
        most: Jobs that have a thread at all, late and written off ones included.
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
        """Jobs that were written off and still have a thread."""
        return [job for job in self._busy if job.written_off]

    def refusal(self, lane: Hashable) -> SidecarError | None:
        """Return why nothing can be added to a lane: it is closed."""
        found = self._lanes.get(lane)
        closed = found is not None and found.running is not None and found.running.written_off
        return found.running.task.stuck() if closed and found and found.running else None

    def add(self, job: Job) -> None:
        """Let a job wait; its lane is not closed."""
        lane = self._lanes.setdefault(job.task.lane, _Lane())
        lane.waiting.append(job)
        if lane.running is None and len(lane.waiting) == 1:
            self._ready.append(job.task.lane)

    def next(self) -> Job | None:
        """Return the job that is begun now, whose lane's last turn is longest ago; None if none may be."""
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
        """Note that a job has left its thread; its lane goes on, or is open again."""
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
        Let time pass.

        Returns:
            Jobs that are written off by it, each with those that waited behind it and fail too.
        """
        found = []
        for job in self._busy:
            job.silent += seconds
            if job.silent >= job.task.kind.limit and not job.written_off:
                job.written_off = True
                waiting = self._lanes[job.task.lane].waiting
                found.append((job, list(waiting)))
                waiting.clear()
        return found

    def drop(self) -> None:
        """Forget all jobs that wait."""
        self._ready.clear()
        for lane in self._lanes.values():
            lane.waiting.clear()
        self._lanes = {name: lane for name, lane in self._lanes.items() if lane.running is not None}

    def _free(self) -> bool:
        prompt = sum(job.silent < self._late for job in self._busy)
        return prompt < self._places and len(self._busy) < self._most
