"""The waiting list: which request gets a slot, where several models have different numbers of free ones."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from daemon.engine.scheduling.policy import MOST_PASSED
from daemon.engine.scheduling.prefill_plan import WaitingList


@dataclass(eq=False)
class Request:
    """A request that waits."""

    model_key: str
    priority: int = 0
    rows: int = 1
    namespace: str = ""
    program: str = ""
    arrived: float = 0.0


def started(waiting: WaitingList[Request], **running: int) -> Request | None:
    """Return the request that starts when models have so many slots in use, of two."""
    return next(waiting.starting(lambda model: running[str(model)], 2, lambda _: True), None)


@pytest.mark.parametrize("rows", [1, 2])
def test_low_priority_does_not_starve_beside_a_model(rows: int) -> None:
    """What passed a request counts on while its model is full, and while that has too few free slots for it."""
    waiting: WaitingList[Request] = WaitingList()
    patient = Request("m", priority=-1, rows=rows)
    waiting.add(patient)
    for _ in range(MOST_PASSED):
        for later, busy in ((Request("m"), 1), (Request("n"), 2)):
            waiting.add(later)
            assert started(waiting, m=busy, n=0) is later
    beside = Request("n")
    waiting.add(beside)
    assert started(waiting, m=3 - rows, n=0) is beside
    waiting.add(Request("m"))
    assert started(waiting, m=2 - rows, n=2) is patient


def test_request_that_left_is_not_remembered() -> None:
    """A sequence has its prompt, which would stay in memory until another one starts."""
    waiting: WaitingList[Request] = WaitingList()
    first, later = Request("m", priority=-1), Request("m")
    waiting.add(first)
    waiting.add(later)
    assert started(waiting, m=0) is later
    waiting.remove(first)
    assert not waiting._turns._passed
