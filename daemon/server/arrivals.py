"""
Arrivals: how many requests may be on their way in, how long each may take, and how many bytes all of them may hold.

gRPC assembles a request in memory before any handler sees a byte of it. What it assembles is bounded here: a request is
only received in a place of its lane, for a limited time. Where no place is free, calls wait with what fits into a
stream's window. Pure; runs on an event loop.
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
"""Of all requests that have arrived and whose calls have not ended: sixteen of the largest."""
MAX_WAITING = 1_000
"""Calls that wait for a place of one lane; beyond them, the one that came first is refused."""
PATIENCE_SECONDS = 10.0
"""A request has so long to arrive whole, and a call to get a place."""
HURRY_SECONDS = 1.0
"""While others wait for a place, a request has so long. Eight megabytes take a tenth of that on a slow machine."""
RETRY_SECONDS = 1.0

T = TypeVar("T")


class Lane:
    """
    Places in which requests are received.

    The call that came last gets the next place: among calls whose requests never arrive whole, one whose request is
    there already is answered soonest that way.

    Args:
        places: Requests that are received at a time.
        patience: Seconds in which a request must arrive, and for which a call waits for a place.
        hurry: Seconds in which a request must arrive while others wait for a place.
        most_waiting: Calls that wait for a place.
    """

    def __init__(
        self,
        places: int,
        patience: float = PATIENCE_SECONDS,
        hurry: float = HURRY_SECONDS,
        most_waiting: int = MAX_WAITING,
    ) -> None:
        self.places = places
        self._patience = patience
        self._hurry = hurry
        self._most_waiting = most_waiting
        self._receiving: dict[asyncio.Timeout, float] = {}
        """The limit of each request that is being received, and the loop's time at which that began."""
        self._free = places
        self._waiting: list[asyncio.Future[None]] = []
        """Calls without a place, the last one at the end."""

    async def receive(self, read: Callable[[], Awaitable[T]]) -> T:
        """
        Return what `read` returns once a place is free.

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
            self._waiting.pop(0).set_exception(_full("too many calls wait to send their requests"))
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
                self._pass_on()  # the place came in the instant in which its call was given up
            if isinstance(error, TimeoutError):
                raise _full("requests of others arrive too slowly") from None
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            waiting = self._waiting.pop()
            if not waiting.done():
                waiting.set_result(None)
                return
        self._free += 1

    def _hurry_up(self) -> None:
        """Shorten the time of those that receive, because others wait."""
        for limit, began in self._receiving.items():
            until = began + self._hurry
            if not limit.expired() and (limit.when() or 0.0) > until:
                limit.reschedule(until)


@dataclass(frozen=True, slots=True)
class Way:
    """
    How calls of one method come in.

    Attributes:
        lane: Where their requests are received.
        most_bytes: Of one request.
        most_open: Calls that are open at a time.
    """

    lane: Lane
    most_bytes: int
    most_open: int


class Arrivals:
    """
    Counts what has arrived.

    Args:
        ways: The way of each method, by its full name.
        most_held: Bytes that all requests whose calls are open may have together.
        on_refusal: Called for each call that is refused.
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
        Yield the arrival of one call, which is open until the block ends.

        Raises:
            SidecarError: QUEUE_FULL if too many calls of that method are open.
            KeyError: If the method has no way.
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
    One call's request, or requests.

    Args:
        way: How it comes in.
        take: Called with the bytes of each request; raises where that is too much.

    Attributes:
        nbytes: Bytes of what has arrived; None before the first request.
    """

    def __init__(self, way: Way, take: Callable[[int], None]) -> None:
        self.nbytes: int | None = None
        self.most_bytes = way.most_bytes
        self._lane = way.lane
        self._take = take

    async def receive(self, read: Callable[[], Awaitable[T]]) -> T:
        """
        Return what `read` returns, the bytes of a request or what says that there is none.

        Raises:
            SidecarError: QUEUE_FULL or SLOW_SENDER, see `Lane.receive`; QUEUE_FULL if too many bytes are held.
        """
        data = await self._lane.receive(read)
        if isinstance(data, bytes) and len(data) <= self.most_bytes:  # what is larger is refused and not held
            self._take(len(data))
            self.nbytes = (self.nbytes or 0) + len(data)
        return data


def _full(why: str) -> SidecarError:
    return SidecarError(Reason.QUEUE_FULL, f"{why}; try again shortly", retry_after=RETRY_SECONDS)


def _slow() -> SidecarError:
    return SidecarError(
        Reason.SLOW_SENDER,
        f"the request did not arrive whole within {PATIENCE_SECONDS:g} s, or {HURRY_SECONDS:g} s while others waited",
        retry_after=RETRY_SECONDS,
    )
