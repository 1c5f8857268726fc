"""Arrivals: the number, the time and the bytes of incoming requests are bounded."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from daemon.server.arrivals import Arrivals, Lane, Way
from daemon.shared.errors import Reason, SidecarError

METHOD = "/package.Service/Ask"
LONG = 1000.0


async def never() -> bytes:
    """Receive a request that stays halfway."""
    await asyncio.Event().wait()
    raise AssertionError


async def at_once() -> bytes:
    """Receive a request that is there."""
    return b"request"


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def reason_of(task: asyncio.Task[bytes]) -> Reason:
    """Return why a request was not received."""
    with pytest.raises(SidecarError) as caught:
        await task
    assert caught.value.retry_after
    return caught.value.reason


async def test_concurrent_request_uploads_are_limited() -> None:
    """The next call gets a place when a request has arrived."""
    lane = Lane(places=2, patience=LONG, hurry=LONG)
    there, begun = asyncio.Event(), []

    async def later() -> bytes:
        begun.append(1)
        await there.wait()
        return b"late"

    tasks = [asyncio.create_task(lane.receive(later)) for _ in range(5)]
    await settle()
    assert len(begun) == 2
    there.set()
    assert await asyncio.gather(*tasks) == [b"late"] * 5
    assert await lane.receive(at_once) == b"request"


async def test_slow_request_upload_times_out() -> None:
    """Its place is free then."""
    lane = Lane(places=1, patience=0.0)
    assert await reason_of(asyncio.create_task(lane.receive(never))) is Reason.SLOW_SENDER
    assert lane._free == 1


async def test_request_upload_has_less_time_under_load() -> None:
    """Whether they came before it or after."""
    lane = Lane(places=1, patience=LONG, hurry=0.0)
    slow = asyncio.create_task(lane.receive(never))
    await settle()
    waiting = [asyncio.create_task(lane.receive(never)) for _ in range(2)]
    last = asyncio.create_task(lane.receive(at_once))
    assert await reason_of(slow) is Reason.SLOW_SENDER
    assert await last == b"request", "the call that came last has the next place"
    assert await reason_of(waiting[1]) is Reason.SLOW_SENDER
    waiting[0].cancel()
    with suppress(asyncio.CancelledError):
        await waiting[0]
    assert await lane.receive(at_once) == b"request"


async def test_upload_slot_wait_is_bounded() -> None:
    """Beyond that number the one that came first is refused."""
    lane = Lane(places=1, patience=LONG, hurry=LONG, most_waiting=2)
    tasks = [asyncio.create_task(lane.receive(never)) for _ in range(4)]
    await settle()
    assert [task.done() for task in tasks] == [False, True, False, False]
    assert await reason_of(tasks[1]) is Reason.QUEUE_FULL
    lane._patience = 0.0
    assert await reason_of(asyncio.create_task(lane.receive(never))) is Reason.QUEUE_FULL
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (lane._free, lane._waiting, lane._receiving) == (1, [], {})


async def test_call_that_was_just_given_up_is_not_refused_too() -> None:
    """It is the oldest that waits for a place, and the call that comes next is there before it has run."""
    lane = Lane(places=1, patience=LONG, hurry=LONG, most_waiting=1)
    sending = asyncio.create_task(lane.receive(never))
    await settle()
    given_up = asyncio.create_task(lane.receive(at_once))
    await settle()
    given_up.cancel()
    asyncio.get_running_loop().call_soon(sending.cancel)
    assert await lane.receive(at_once) == b"request"
    assert given_up.cancelled()


async def test_upload_slot_of_a_cancelled_call_is_passed_on() -> None:
    """None is lost."""
    lane = Lane(places=1, patience=LONG, hurry=LONG)
    there = asyncio.Event()

    async def later() -> bytes:
        await there.wait()
        return b"late"

    first = asyncio.create_task(lane.receive(later))
    await settle()
    second = asyncio.create_task(lane.receive(at_once))
    third = asyncio.create_task(lane.receive(at_once))
    await settle()
    there.set()
    first.add_done_callback(lambda _: third.cancel())
    await asyncio.gather(first, third, return_exceptions=True)
    assert await second == b"request"
    assert lane._free == 1


async def test_reader_timeout_is_not_an_upload_timeout() -> None:
    """It is a fault, and stays one."""

    async def broken() -> bytes:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await Lane(places=1).receive(broken)


async def test_request_uploads_hold_bounded_bytes() -> None:
    """Until their calls end; the first one may have any size that its way allows."""
    refused: list[int] = []
    arrivals = Arrivals({METHOD: Way(Lane(places=1), 100, 10)}, most_held=10, on_refusal=lambda: refused.append(1))

    async def large() -> bytes:
        return b"x" * 101

    with arrivals.call(METHOD) as first:
        await first.receive(at_once)
        with pytest.raises(SidecarError) as caught, arrivals.call(METHOD) as second:
            await second.receive(at_once)
        assert caught.value.reason is Reason.QUEUE_FULL
        with arrivals.call(METHOD) as third:
            assert len(await third.receive(large)) == 101, "what is refused for its size is not held"
        assert arrivals.held == 7
    assert arrivals.held == 0
    assert refused == [1]


def test_open_calls_of_a_method_are_limited() -> None:
    """Calls of another method do not count."""
    refused: list[int] = []
    way = Way(Lane(places=1), 100, 1)
    arrivals = Arrivals({METHOD: way, "/other": way}, on_refusal=lambda: refused.append(1))
    with arrivals.call(METHOD):
        with pytest.raises(SidecarError, match="1 calls of Ask are open already") as caught, arrivals.call(METHOD):
            pass
        assert caught.value.retry_after
        with arrivals.call("/other"):
            pass
    with arrivals.call(METHOD):
        pass
    assert refused == [1]
