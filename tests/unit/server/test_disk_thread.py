"""Work on a disk: its result comes back to the event loop, which does not wait for work that hangs."""

from __future__ import annotations

import asyncio
import threading

import pytest

from daemon.server.disk_thread import on_thread


async def test_work_returns_or_raises_on_the_event_loop() -> None:
    """As if it had been called there; it ran elsewhere."""
    assert await on_thread(threading.current_thread) is not threading.current_thread()

    def fails() -> None:
        raise OSError("no such disk")

    with pytest.raises(OSError, match="no such disk"):
        await on_thread(fails)


def test_event_loop_ends_while_work_hangs() -> None:
    """What the work returns afterwards goes nowhere."""
    begun, back, over = threading.Event(), threading.Event(), threading.Event()

    def hangs() -> None:
        begun.set()
        back.wait()
        over.set()

    async def main() -> None:
        task = asyncio.create_task(on_thread(hangs))
        while not begun.is_set():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    back.set()
    assert over.wait(20)
