"""Admission: the number of waiting calls and prompt tokens is bounded, and no call waits once the daemon drains."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from daemon.server.admission import LEAST_RETRY_SECONDS, MAX_WAITING_TOKENS, MOST_RETRY_SECONDS, Admission
from daemon.server.callers import Caller
from daemon.shared.errors import Reason, SidecarError
from tests.support.builders import Clock


def test_admission_slot_is_returned_at_the_end() -> None:
    """Also if the call fails; the last one tells."""
    idle: list[int] = []
    admission = Admission(2, lambda: idle.append(admission.active))
    with admission.admit() as place:
        assert (admission.active, admission.waiting) == (1, 1)
        admission.began(place)
        assert (admission.active, admission.waiting) == (1, 0)
    with pytest.raises(ZeroDivisionError), admission.admit():
        raise ZeroDivisionError
    assert admission.active == 0
    assert idle == [0, 0]


def test_calls_beyond_the_queue_limit_are_refused() -> None:
    """With a time to try again; calls that run do not count."""
    admission = Admission(2)
    with ExitStack() as stack:
        first = stack.enter_context(admission.admit())
        stack.enter_context(admission.admit())
        with pytest.raises(SidecarError) as refused, admission.admit():
            pass
        assert refused.value.reason is Reason.QUEUE_FULL
        assert refused.value.retry_after
        assert admission.rejected == 1
        admission.began(first)
        stack.enter_context(admission.admit())
        assert admission.waiting == 2


@pytest.mark.parametrize(("seconds", "retry"), [(5.0, 5.0), (0.01, LEAST_RETRY_SECONDS), (1000.0, MOST_RETRY_SECONDS)])
def test_full_queue_error_has_a_retry_delay(seconds: float, retry: float) -> None:
    """Measured over the last calls that began to run; from half a second to a minute; loads do not count."""
    clock = Clock()
    admission = Admission(1, clock=clock)
    for _ in range(40):
        with admission.admit() as place:
            admission.tokenised(place, 10)
            clock.pass_(seconds)
            admission.began(place)
        with admission.admit() as load:
            admission.began(load)
    clock.pass_(seconds)
    with admission.admit(), pytest.raises(SidecarError) as refused, admission.admit():
        pass
    assert refused.value.retry_after == pytest.approx(retry, rel=0.05)


def test_prompt_tokens_beyond_the_limit_are_refused() -> None:
    """A prompt of any size waits alone; together they have a limit, to the token."""
    admission = Admission(8)
    with admission.admit() as first, admission.admit() as second, admission.admit() as third:
        admission.tokenised(first, 3 * MAX_WAITING_TOKENS)
        with pytest.raises(SidecarError) as refused:
            admission.tokenised(second, 1)
        assert refused.value.reason is Reason.QUEUE_FULL
        assert admission.rejected == 1
        admission.began(first)
        admission.tokenised(second, MAX_WAITING_TOKENS - 1)
        admission.tokenised(third, 1)
        with admission.admit() as fourth, pytest.raises(SidecarError):
            admission.tokenised(fourth, 1)


def test_closing_admission_drops_waiting_and_new_calls() -> None:
    """Running calls go on."""
    admission = Admission(4)
    dropped: list[str] = []
    with admission.admit() as running, admission.admit() as waiting:
        running.drop = lambda error: dropped.append("running")
        waiting.drop = lambda error: dropped.append(error.reason)
        admission.began(running)
        admission.close()
        assert dropped == [Reason.SHUTTING_DOWN]
        with pytest.raises(SidecarError) as refused, admission.admit():
            pass
        assert refused.value.reason is Reason.SHUTTING_DOWN
        assert refused.value.retry_after


def test_admission_slot_can_be_returned_early() -> None:
    """Once: the end of the block then changes nothing."""
    idle: list[int] = []
    admission = Admission(1, lambda: idle.append(1))
    with admission.admit() as place:
        admission.leave(place)
        assert (admission.active, idle) == (0, [1])
    assert idle == [1]


def test_cutting_off_drops_running_calls() -> None:
    """Their time is over; their callers may come back."""
    admission = Admission(4)
    dropped: list[SidecarError] = []
    with admission.admit() as running:
        running.drop = dropped.append
        admission.began(running)
        admission.close()
        assert dropped == []
        admission.cut_off()
    assert [error.reason for error in dropped] == [Reason.SHUTTING_DOWN]
    assert dropped[0].retry_after


def test_one_program_fills_its_share_of_the_queue() -> None:
    """And leaves the rest to others; unknown programs count as one."""
    admission = Admission(4, most_of_program=2)
    mine = Caller(7, "mine")
    with ExitStack() as stack:
        first, _ = (stack.enter_context(admission.admit(mine)) for _ in range(2))
        with pytest.raises(SidecarError, match=r"2 requests of mine wait already, .* max_queue_share") as refused:
            stack.enter_context(admission.admit(Caller(8, "mine")))
        assert refused.value.reason is Reason.QUEUE_FULL
        assert refused.value.retry_after
        stack.enter_context(admission.admit(Caller(9, "other")))
        admission.began(first)
        stack.enter_context(admission.admit(mine))
        assert sorted(admission.calls, key=str) == sorted(
            [(mine, False), (mine, True), (mine, True), (Caller(9, "other"), True)], key=str
        )
    assert (admission.calls, admission.rejected) == ([], 1)
