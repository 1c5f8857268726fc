"""Starts child processes that a terminal's Ctrl-C cannot end before they have said what they do with it."""

from __future__ import annotations

import signal
from collections.abc import Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, TypeVar

from daemon.shared.group_signals import GROUP_SIGNALS

T = TypeVar("T")


@coroutine
def spawned(starting: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """
    Await the start of a child, which inherits `GROUP_SIGNALS` blocked; it ignores them and then lets them through.

    A new interpreter takes some 30 ms until its first line, and Ctrl-C in that time would end it with a traceback.
    asyncio starts the process before it first waits. So signals are held back for that step alone, and no other child
    and no thread of other work inherits that.

    Args:
        starting: What starts it, such as `asyncio.create_subprocess_exec(...)`.
    """
    step = partial(starting.send, None)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        waited = step()
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    while True:
        try:
            step = partial(starting.send, (yield waited))
        except BaseException as error:
            step = partial(starting.throw, error)
        try:
            waited = step()
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
