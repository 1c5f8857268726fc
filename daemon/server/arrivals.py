"""
Limits on incoming requests: how many are received at a time, for how long, and how many bytes all of them hold.

gRPC assembles a whole request in memory before a handler sees a byte of it. The memory for that is bounded here:

* A request is received only in a place of its method's lane. A lane has a few places.
* It has 10 s to arrive whole, or 1 s while other calls wait for a place. A call waits 10 s for a place.
* Calls without a place hold no more than the window of an HTTP/2 stream.
* The bytes of all requests that have arrived count until their calls end.

Pure; runs on an event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from daemon.shared.errors import Reason, SidecarError

MAX_HELD_BYTES = 128 * 1024 * 1024
"""Bytes of all requests of open calls: sixteen of the largest."""
MAX_WAITING = 1_000
"""Calls that wait for a place of a lane. When one more comes, the oldest is refused."""
ARRIVAL_SECONDS = 10.0
"""Time of a request to arrive whole, and of a call to get a place."""
HURRY_SECONDS = 1.0
"""The same while other calls wait for a place. Eight megabytes take a tenth of that on a slow machine."""
ARRIVAL_RETRY_SECONDS = 1.0
"""Time to retry of calls that are refused here."""

T = TypeVar("T")


class Lane:
    """
    The places in which requests of some methods are received.

    The call that came last gets the next free place. Where many calls never send their request whole, a call that does
    is answered soonest that way.

    Args:
        places: Requests that are received at a time.
        patience: Seconds in which a request must arrive, and for which a call waits for a place.
        hurry: Seconds in which a request must arrive while others wait for a place.
        most_waiting: Calls that wait for a place.
    """

    def __init__(
        self,
        places: int,
        patience: float = ARRIVAL_SECONDS,
        hurry: float = HURRY_SECONDS,
        most_waiting: int = MAX_WAITING,
    ) -> None:
        self.places = places
        self._patience = patience
        self._hurry = hurry
        self._most_waiting = most_waiting
        self._receiving: dict[asyncio.Timeout, float] = {}
        """Time limit of each request that is being received, and the loop's time at which its reception began."""
        self._free = places
        self._waiting: list[asyncio.Future[None]] = []
        """Calls without a place, the latest at the end."""

    async def receive(self, read: Callable[[], Awaitable[T]]) -> T:
        """
        Await `read` as soon as a place is free, and return its result.

        Raises:
            SidecarError: QUEUE_FULL without a place in time; SLOW_SENDER if the request does not arrive in time.
        """
        await self._place()
        limit = asyncio.timeout(self._patience)
        try:
            async with limit:
                self._receiving[limit] = asyncio.get_running_loop().time()
                if self._waiting:
                    self._hurry_up()
                return await read()
        except TimeoutError:
            if limit.expired():
                raise _slow() from None
            raise
        finally:
            self._receiving.pop(limit, None)
            self._pass_on()

    async def _place(self) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= self._most_waiting:
            oldest = self._waiting.pop(0)
            if not oldest.done():  # else it was given up in this turn of the loop
                oldest.set_exception(_full("too many calls wait to send their requests"))
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._hurry_up()
        try:
            async with asyncio.timeout(self._patience):
                await mine
        except BaseException as error:
            if mine in self._waiting:
                self._waiting.remove(mine)
            elif not mine.cancelled() and mine.exception() is None:
                self._pass_on()  # the place was given in the same turn of the loop in which its call was given up
            if isinstance(error, TimeoutError):
                raise _full("requests of others arrive too slowly") from None
            raise

    def _pass_on(self) -> None:
        """Give a free place to the latest call that waits, or keep it."""
        while self._waiting:
            waiting = self._waiting.pop()
            if not waiting.done():
                waiting.set_result(None)
                return
        self._free += 1

    def _hurry_up(self) -> None:
        """Shorten the time of the requests that are being received, because a call waits for a place."""
        for limit, began in self._receiving.items():
            until = began + self._hurry
            if not limit.expired() and (limit.when() or 0.0) > until:
                limit.reschedule(until)


@dataclass(frozen=True, slots=True)
class Way:
    """
    The limits of one method.

    Attributes:
        lane: Places in which its requests are received.
        most_bytes: Most bytes of a request.
        most_open: Most calls that are open at a time.
    """

    lane: Lane
    most_bytes: int
    most_open: int


class Arrivals:
    """
    Applies the limits to all calls.

    Args:
        ways: The limits of each method, by its full name.
        most_held: Most bytes that the requests of all open calls may have together.
        on_refusal: Called for each call that is refused.

    Attributes:
        held: Bytes of the requests of all open calls.
    """

    def __init__(
        self, ways: dict[str, Way], most_held: int = MAX_HELD_BYTES, on_refusal: Callable[[], None] = lambda: None
    ) -> None:
        self.held = 0
        self._ways = ways
        self._most_held = most_held
        self._on_refusal = on_refusal
        self._open: Counter[str] = Counter()

    @contextmanager
    def call(self, method: str) -> Iterator[Arrival]:
        """
        Count a call as open until the block ends, and yield the way to its requests.

        Raises:
            SidecarError: QUEUE_FULL if too many calls of that method are open.
            KeyError: If the method is unknown.
        """
        way = self._ways[method]
        if self._open[method] >= way.most_open:
            self._on_refusal()
            raise _full(f"{way.most_open} calls of {method.rpartition('/')[2]} are open already")
        self._open[method] += 1
        arrival = Arrival(way, self._take)
        try:
            yield arrival
        except SidecarError as error:
            if arrival.nbytes is None and error.reason in (Reason.QUEUE_FULL, Reason.SLOW_SENDER):
                self._on_refusal()
            raise
        finally:
            self._open[method] -= 1
            self.held -= arrival.nbytes or 0

    def _take(self, nbytes: int) -> None:
        if self.held and self.held + nbytes > self._most_held:
            raise _full(f"requests of {self.held} bytes are held already; {self._most_held} is the most")
        self.held += nbytes


class Arrival:
    """
    The requests of one call.

    Args:
        way: The limits of its method.
        take: Called with the size of each request; raises SidecarError if all requests are too large together.

    Attributes:
        nbytes: Bytes of the requests that have arrived; None before the first.
        most_bytes: Most bytes of a request.
    """

    def __init__(self, way: Way, take: Callable[[int], None]) -> None:
        self.nbytes: int | None = None
        self.most_bytes = way.most_bytes
        self._lane = way.lane
        self._take = take

    async def receive(self, read: Callable[[], Awaitable[T]]) -> T:
        """
        Receive a request: return the result of `read`, which is its bytes, or a mark for the end of the stream.

        Raises:
            SidecarError: QUEUE_FULL or SLOW_SENDER, see `Lane.receive`; QUEUE_FULL if too many bytes are held.
        """
        data = await self._lane.receive(read)
        if isinstance(data, bytes) and len(data) <= self.most_bytes:  # larger ones are refused later and not held
            self._take(len(data))
            self.nbytes = (self.nbytes or 0) + len(data)
        return data


def _full(why: str) -> SidecarError:
    return SidecarError(Reason.QUEUE_FULL, f"{why}; try again shortly", retry_after=ARRIVAL_RETRY_SECONDS)


def _slow() -> SidecarError:
    return SidecarError(
        Reason.SLOW_SENDER,
        f"the request did not arrive whole within {ARRIVAL_SECONDS:g} s, or {HURRY_SECONDS:g} s while others waited",
        retry_after=ARRIVAL_RETRY_SECONDS,
    )
