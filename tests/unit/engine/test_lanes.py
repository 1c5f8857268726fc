"""Lanes: who is next, and what hangs. Jobs that no thread runs, and seconds that pass when a test says so."""

from __future__ import annotations

import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from daemon.engine.background.lanes import Job, Lanes
from daemon.engine.background.task import Kind, Pool, Task
from daemon.shared.errors import Reason

LIMIT = 30.0
LATE = 1.0
KIND = Kind("lookup", Pool.FILES, "looking up", LIMIT)


def job(lane: str, *, over: bool = False, limit: float = LIMIT) -> Job:
    """Return a job that nothing will run."""
    kind = Kind("lookup", Pool.FILES, "looking up", limit)
    return Job(Task(kind, lane, lane, lambda: None), lambda _: None, lambda _: None, lambda: over)


def lanes(places: int = 2, most: int = 8) -> Lanes:
    """Return lanes with so many places and threads."""
    return Lanes(places, most, LATE)


def begun(one: Lanes) -> list[str]:
    """Begin all that may begin, and return their lanes."""
    return [found.task.model for found in iter(one.next, None)]


def test_lane_runs_one_job_at_a_time() -> None:
    """Twenty slow ones of a model leave every other place to others, whenever they come."""
    one = lanes()
    slow = [job("slow") for _ in range(20)]
    for each in slow:
        one.add(each)
    assert begun(one) == ["slow"]
    one.add(job("other"))
    assert begun(one) == ["other"]


def test_lanes_alternate() -> None:
    """A model with twenty prompts and one that comes then get one each; within a lane, the oldest is first."""
    one = lanes(places=1)
    jobs = [job("many") for _ in range(20)]
    for each in jobs:
        one.add(each)
    assert one.next() is jobs[0]
    few = [job("few"), job("few")]
    for each in few:
        one.add(each)
    order = []
    running = jobs[0]
    for _ in range(6):
        one.end(running)
        found = one.next()
        assert found is not None
        running = found
        order.append(running)
    assert order == [few[0], jobs[1], few[1], jobs[2], jobs[3], jobs[4]]


def test_job_of_a_cancelled_caller_is_not_begun() -> None:
    one = lanes(places=1)
    for each in (job("a", over=True), job("a", over=True), job("b")):
        one.add(each)
    assert begun(one) == ["b"]


def test_late_job_gives_its_place_to_another_lane() -> None:
    """Three disks that hang do not fill two places; a sign of life takes the place again."""
    one = lanes()
    for name in "abcd":
        one.add(job(name))
    first, second = one.next(), one.next()
    assert first is not None
    assert second is not None
    assert begun(one) == []
    one.tick(LATE)
    assert begun(one) == ["c", "d"]
    one.tick(LATE)
    first.sign()
    one.add(job("e"))
    one.add(job("f"))
    assert begun(one) == ["e"]


def test_thread_count_is_bounded_whatever_hangs() -> None:
    one = lanes(places=2, most=8)
    for number in range(100):
        one.add(job(str(number)))
    names = []
    for _ in range(20):
        names += begun(one)
        one.tick(LATE)
    assert names == [str(number) for number in range(8)]


def test_silent_lane_is_abandoned_with_its_queue() -> None:
    """They are told once; the lane is closed, and only that one, until it comes back."""
    one = lanes()
    first, behind, other = job("a"), job("a"), job("b")
    for each in (first, behind, other):
        one.add(each)
    assert begun(one) == ["a", "b"]
    assert one.tick(LIMIT - 1) == []
    other.sign()
    assert one.tick(1) == [(first, [behind])]
    assert one.tick(LIMIT - 2) == []
    assert one.stuck == [first]
    refusal = one.refusal("a")
    assert refusal is not None
    assert (refusal.reason, refusal.metadata) == (Reason.MODEL_NOT_RESPONDING, {"work": "lookup"})
    assert "looking up a has not moved on for 30 s" in refusal.message
    assert refusal.retry_after
    assert one.refusal("b") is None
    one.end(first)
    assert one.refusal("a") is None
    assert one.stuck == []
    one.add(job("a"))
    assert begun(one) == ["a"]


def test_lane_progress_counts_and_not_time() -> None:
    """A hundred gigabytes take hours to read, with a sign each mebibyte."""
    one = lanes()
    long = job("a")
    one.add(long)
    begun(one)
    for _ in range(1000):
        assert one.tick(LIMIT - 1) == []
        long.sign()


@pytest.mark.parametrize("seed", range(5))
def test_lanes_of_many_models_share_turns_evenly(seed: int) -> None:
    """Random floods, one place: between two turns of a lane that waits, no other lane has two."""
    rng = random.Random(seed)
    one, order = lanes(places=1), []
    waiting = dict.fromkeys("abcde", 0)
    running: Job | None = None
    for _ in range(500):
        name = rng.choice("aaaaaabcde")
        one.add(job(name))
        waiting[name] += 1
        if rng.random() < 0.7:
            if running is not None:
                one.end(running)
            running = one.next()
            assert running is not None
            order.append((running.task.model, {name for name, count in waiting.items() if count}))
            waiting[running.task.model] -= 1
    for at in range(len(order)):
        for other in "abcde":
            since = []
            for later, waits in order[at + 1 :]:
                if other not in waits or later == other:
                    break
                since.append(later)
            assert len(since) == len(set(since))


class Machine(RuleBasedStateMachine):
    """Adds, begins, ends and lets time pass at random, and compares with what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = lanes(places=2, most=4)
        self.running: list[Job] = []
        self.waiting: list[Job] = []

    @rule(name=st.sampled_from("abcdefgh"), limit=st.sampled_from([2.0, 100.0]))
    def add(self, name: str, limit: float) -> None:
        """Add a job, unless its lane is closed."""
        closed = any(one.written_off and one.task.lane == name for one in self.running)
        assert (self.lanes.refusal(name) is not None) == closed
        if not closed:
            one = job(name, limit=limit)
            self.lanes.add(one)
            self.waiting.append(one)

    @rule()
    def begin(self) -> None:
        """Begin one: exactly if there is a place, a thread, and a lane that waits and does not run."""
        lanes_running = {one.task.lane for one in self.running}
        prompt = sum(one.silent < LATE for one in self.running)
        may = prompt < 2 and len(self.running) < 4 and any(one.task.lane not in lanes_running for one in self.waiting)
        found = self.lanes.next()
        assert (found is not None) == may
        if found is not None:
            first = next(one for one in self.waiting if one.task.lane == found.task.lane)
            assert found is first
            self.waiting.remove(found)
            self.running.append(found)

    @rule(which=st.integers(0, 3), sign=st.booleans())
    def end(self, which: int, *, sign: bool) -> None:
        """End one of those that run, or let it give a sign of life."""
        if which < len(self.running):
            one = self.running[which]
            if sign:
                one.sign()
            else:
                self.running.remove(one)
                self.lanes.end(one)

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        due = [one for one in self.running if not one.written_off and one.silent + seconds >= one.task.kind.limit]
        for one, behind in self.lanes.tick(seconds):
            due.remove(one)
            assert behind == [other for other in self.waiting if other.task.lane == one.task.lane]
            self.waiting = [other for other in self.waiting if other.task.lane != one.task.lane]
        assert due == []

    @invariant()
    def one_each(self) -> None:
        """No lane has two jobs, and there are never too many threads."""
        names = [one.task.lane for one in self.running]
        assert len(names) == len(set(names)) <= 4
        assert set(map(id, self.lanes.stuck)) == {id(one) for one in self.running if one.written_off}


TestLanes = Machine.TestCase
