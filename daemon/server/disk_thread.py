"""Runs work on a disk beside the event loop, on a thread that does not keep the process from its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


async def on_thread(work: Callable[[], T]) -> T:
    """
    Await work that may wait for a disk.

    The threads of `asyncio.to_thread` have to end before the event loop does, and again before the process. A disk that
    does not answer any more would then keep the daemon, which was told to stop, until it is killed.

    Args:
        work: A function that blocks.

    Raises:
        Exception: What the function raises.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not done.done():  # else the call that waited was cancelled
            outcome()

    def run() -> None:
        try:
            outcome = partial(done.set_result, work())
        except Exception as error:
            outcome = partial(done.set_exception, error)
        with suppress(RuntimeError):  # the event loop has ended meanwhile
            loop.call_soon_threadsafe(settle, outcome)

    Thread(target=run, name="disk", daemon=True).start()
    return await done
