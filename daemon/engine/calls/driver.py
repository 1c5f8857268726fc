"""
Drives calls: each is a generator on the MLX thread, which yields the condition that it waits for.

    begin ───> runs ───> returns: the call has sent its last event, or its request runs
                │  ↑ └─> raises: the driver sends the error, which is the last event
         yields │  │ the condition holds at `poll`
                ↓  │
               waits ──> cancelled: the generator is closed at its `yield`, and nothing more is sent

A call gives back what it holds (leases, tickets, its place in a search) in `finally`, so each of the three ways out
does it. The event that ends a call is sent once: by the call as its last act, by the driver after an error, or by the
runner that has taken over its request.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Generic, TypeVar, cast

from daemon.cache.load import Progress, Ticket
from daemon.engine.background.background import Background, as_sidecar_error
from daemon.engine.background.task import Task
from daemon.shared.errors import SidecarError

T = TypeVar("T")
M = TypeVar("M")

Condition = Callable[[], bool]
"""Asked on the MLX thread once a turn, so it must be cheap. It reads state that other threads may set."""

Waiting = Generator[Condition, None, T]
"""Part of a call: yields conditions and returns a result."""

Call = Waiting[None]


def until(condition: Condition) -> Waiting[None]:
    """Wait until a condition holds; if it holds now, go on at once."""
    while not condition():
        yield condition


def no_report(progress: Progress) -> None:
    """Report no progress: Generate and Invalidate have no event for it."""


def leased(ticket: Ticket[M], report: Callable[[Progress], None] = no_report) -> Waiting[Ticket[M]]:
    """
    Wait for a model's weights, and return the ticket with its lease. The caller cancels it to give the lease back.

    Args:
        ticket: The wait for the model; it is cancelled if the call is closed meanwhile.
        report: Gets the progress of the load, whenever that changed since the last turn.

    Raises:
        Exception: The error of the load, after which the ticket holds nothing.
    """
    reported: Progress | None = None

    def moved() -> bool:
        return ticket.done or ticket.progress != reported

    with ExitStack() as held:
        held.callback(ticket.cancel)
        yield from until(moved)
        while not ticket.done:
            reported = ticket.progress
            report(reported)
            yield from until(moved)
        if ticket.error is not None:
            raise ticket.error.with_traceback(None)  # all callers of the load get the same error
        held.pop_all()
    return ticket


def wait_for(background: Background, task: Task[T]) -> Waiting[T]:
    """
    Run a task on other threads and return its result. A task that has not begun when the call is closed is left out.

    Raises:
        SidecarError: The error of the task; MODEL_NOT_RESPONDING if it hangs.
    """
    pending: Pending[T] = Pending()
    background.run(task, pending.succeed, pending.fail, lambda: pending.abandoned)
    return pending.wait()


class Pending(Generic[T]):
    """
    The result of work on other threads, for the call that waits for it.

    Attributes:
        done: Whether the work has ended, with a result or an error.
        abandoned: Whether the call no longer waits. Other threads read it: work that has not begun is left out.
    """

    def __init__(self) -> None:
        self.done = False
        self.abandoned = False
        self._result: T | None = None
        self._error: SidecarError | None = None

    def succeed(self, result: T) -> None:
        """End with a result."""
        self.done, self._result = True, result

    def fail(self, error: SidecarError) -> None:
        """End with an error."""
        self.done, self._error = True, error

    def wait(self) -> Waiting[T]:
        """
        Wait for the end of the work and return its result.

        Raises:
            SidecarError: The error of the work.
        """
        try:
            yield from until(lambda: self.done)
        finally:
            self.abandoned = True
        error, self._error = self._error, None
        if error is None:
            return cast("T", self._result)
        try:
            raise error.with_traceback(None)  # all callers of a search get the same error
        finally:
            del error  # its traceback has this frame: the cycle would keep the request until the next collection


class CallDriver:
    """
    Runs calls until each waits, and resumes them. Runs on the MLX thread.

    Args:
        fail: Sends the error that ends a call, by the call's id.
    """

    def __init__(self, fail: Callable[[int, SidecarError], None]) -> None:
        self._fail = fail
        self._waiting: dict[int, tuple[Call, Condition]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, call_id: int, call: Call) -> None:
        """Run a call until it waits or ends."""
        self._resume(call_id, call)

    def poll(self) -> None:
        """Resume each call that need not wait any longer, in order of arrival."""
        for call_id, (call, condition) in list(self._waiting.items()):
            if condition():
                self._resume(call_id, call)

    def cancel(self, call_id: int) -> bool:
        """End a call early, and tell whether it waited; nothing is sent."""
        call, _condition = self._waiting.pop(call_id, (None, None))
        if call is None:
            return False
        call.close()
        return True

    def _resume(self, call_id: int, call: Call) -> None:
        try:
            self._waiting[call_id] = call, next(call)
        except StopIteration:
            self._waiting.pop(call_id, None)
        except Exception as error:
            self._waiting.pop(call_id, None)
            self._fail(call_id, as_sidecar_error(error))
