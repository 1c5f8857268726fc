"""Threads that read weights from end to end give way to those that compute tokens."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.engine.background import Background
from daemon.engine.priority import NICENESS, QOS_CLASS_UTILITY, give_way


class Libc:
    """macOS's C library, which answers with `status`."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.calls: list[tuple[int, int]] = []

    def pthread_set_qos_class_self_np(self, qos: int, relative: int) -> int:
        """Note the call."""
        self.calls.append((qos, relative))
        return self.status


def niceness() -> int:
    """Return that of the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is the thread's on Linux only")
def test_only_threads_for_slow_work_give_way() -> None:
    """The calling thread, and those that prepare prompts, keep their priority."""
    usual = niceness()
    background = Background(lambda action: action())
    seen: dict[bool, Any] = {}
    done = threading.Semaphore(0)
    for slow in (False, True):

        def note(value: int, slow: bool = slow) -> None:
            seen[slow] = value
            done.release()

        background.run(niceness, note, lambda _: done.release(), slow=slow)
    assert all(done.acquire(timeout=20) for _ in range(2))
    background.close()
    assert seen == {False: usual, True: min(19, max(usual, NICENESS))}
    assert niceness() == usual


def test_on_a_mac_it_is_the_class_of_work_with_progress() -> None:
    libc = Libc(0)
    give_way("darwin", libc)
    assert libc.calls == [(QOS_CLASS_UTILITY, 0)]


def test_a_system_that_refuses_is_noted_and_no_error() -> None:
    with capture_logs() as logs:
        give_way("darwin", Libc(22))
        give_way("darwin", object())
    assert [entry["event"] for entry in logs] == ["a thread keeps its usual priority"] * 2


def test_other_systems_are_left_alone() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(give_way, "sunos5").result()
