"""The driver of calls: whichever way a call ends, it gives back what it holds and is told of once."""

from __future__ import annotations

from daemon.cache.load import Progress, Stage, Ticket
from daemon.engine.background.task import Pending, Waiting, until
from daemon.engine.calls.driver import Call, CallDriver, leased
from daemon.shared.errors import Reason, SidecarError


class Calls:
    """
    A driver, with calls that wait for flags and note what they do.

    Attributes:
        failed: Errors that were sent, by call.
        log: What calls did.
        open: Flags that are set.
    """

    def __init__(self) -> None:
        self.failed: list[tuple[int, Reason]] = []
        self.log: list[str] = []
        self.open: set[str] = set()
        self.driver = CallDriver(lambda call_id, error: self.failed.append((call_id, error.reason)))

    def call(self, name: str, *flags: str) -> Call:
        """Wait for each flag in turn, and give back at the end."""
        try:
            for flag in flags:
                yield from until(lambda flag=flag: flag in self.open)  # type: ignore[misc]
                self.log.append(f"{name} {flag}")
        finally:
            self.log.append(f"{name} over")


def test_a_call_runs_until_its_condition_does_not_hold_and_again_once_it_does() -> None:
    """A condition that holds already costs no turn."""
    calls = Calls()
    calls.open = {"a", "b"}
    calls.driver.begin(1, calls.call("one", "a", "b", "c"))
    assert calls.log == ["one a", "one b"]
    calls.driver.poll()
    assert len(calls.driver) == 1
    calls.open.add("c")
    calls.driver.poll()
    assert calls.log[2:] == ["one c", "one over"]
    assert (len(calls.driver), calls.failed) == (0, [])


def test_calls_are_resumed_in_the_order_in_which_they_came() -> None:
    """Also if a later call waited for the same condition first."""
    calls = Calls()
    calls.driver.begin(1, calls.call("one", "a", "b"))
    calls.driver.begin(2, calls.call("two", "b"))
    calls.open.add("a")
    calls.driver.poll()
    calls.open.add("b")
    calls.driver.poll()
    assert [entry for entry in calls.log if entry.endswith("b")] == ["one b", "two b"]


def test_a_cancelled_call_gives_back_and_sends_nothing() -> None:
    """A second cancel finds nothing."""
    calls = Calls()
    calls.driver.begin(1, calls.call("one", "a"))
    assert calls.driver.cancel(1)
    assert not calls.driver.cancel(1)
    calls.open.add("a")
    calls.driver.poll()
    assert (calls.log, calls.failed) == (["one over"], [])


def test_an_error_ends_its_call_alone() -> None:
    """At once or after a wait; an unexpected error becomes INTERNAL."""
    calls = Calls()

    def failing(*, late: bool) -> Call:
        yield from until(lambda: not late or "a" in calls.open)
        raise KeyError("secret")

    calls.driver.begin(1, failing(late=False))
    calls.driver.begin(2, failing(late=True))
    calls.driver.begin(3, calls.call("three", "b"))
    calls.open.add("a")
    calls.driver.poll()
    assert calls.failed == [(1, Reason.INTERNAL), (2, Reason.INTERNAL)]
    assert len(calls.driver) == 1


def test_work_for_a_closed_call_counts_as_abandoned_and_its_result_is_dropped() -> None:
    """Threads ask this before they begin."""
    calls = Calls()
    pending: Pending[int] = Pending()

    def waiting() -> Call:
        calls.log.append(str((yield from pending.wait())))

    calls.driver.begin(1, waiting())
    assert not pending.abandoned
    calls.driver.cancel(1)
    assert pending.abandoned
    pending.succeed(7)
    calls.driver.poll()
    assert calls.log == []


def test_progress_of_a_load_is_told_when_it_changes_and_a_closed_wait_abandons_the_load() -> None:
    """The latest of several changes is enough."""
    calls = Calls()
    abandoned: list[Ticket[str]] = []
    ticket: Ticket[str] = Ticket("m")
    ticket.wait_for(abandoned.append)

    def waiting() -> Waiting[None]:
        yield from leased(ticket, lambda progress: calls.log.append(f"{progress.bytes_done}"))

    calls.driver.begin(1, waiting())
    calls.driver.poll()
    for done in (1, 2):
        ticket.progress = Progress(Stage.LOADING, done, 2)
    calls.driver.poll()
    calls.driver.poll()
    assert calls.log == ["0", "2"]
    calls.driver.cancel(1)
    assert abandoned == [ticket]


def test_an_error_that_several_calls_share_does_not_grow_with_each() -> None:
    """Its traceback is that of the last call alone."""
    calls = Calls()
    shared = SidecarError(Reason.MODEL_GATED, "accept the terms first")
    depths = []
    for call_id in range(3):
        ticket: Ticket[str] = Ticket("m")
        ticket.fail(shared)
        calls.driver.begin(call_id, _ignored(leased(ticket)))
        depth, traceback = 0, shared.__traceback__
        while traceback is not None:
            depth, traceback = depth + 1, traceback.tb_next
        depths.append(depth)
    assert len(set(depths)) == 1
    assert [reason for _, reason in calls.failed] == [Reason.MODEL_GATED] * 3


def _ignored(wait: Waiting[Ticket[str]]) -> Call:
    yield from wait
