"""The watch of the fault table notices what a fault leaves behind, and takes no pool for it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.watch import ENGINE_THREADS, Held
from tests.support.daemons import RunningDaemon
from tests.support.process_usage import MOST_GRPC_THREADS, grpc_threads, own_threads

BEFORE = Held(0, 0, 0, 0, 0, threads=3, grpc_threads=6, descriptors=20, engine_threads=5, engine_descriptors=7)
LEAKING = """
import sys, threading
from daemon.server.servicer import SidecarService
stats = SidecarService.Stats
async def leaking(self, request, context):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return await stats(self, request, context)
SidecarService.Stats = leaking
import runpy
runpy.run_module("tests.support.serve_fake", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("name", "count", "grown"),
    [
        ("threads", 4, True),
        ("grpc_threads", 9, False),
        ("grpc_threads", MOST_GRPC_THREADS + 1, True),
        ("engine_threads", ENGINE_THREADS, False),
        ("engine_threads", ENGINE_THREADS + 1, True),
        ("descriptors", 21, True),
    ],
)
def test_only_pools_may_grow_and_within_bounds(name: str, count: int, grown: bool) -> None:
    """A thread of the daemon's own counts at once; gRPC's pool follows the load of the machine."""
    now = replace(BEFORE, **{name: count})
    assert now.more_than(BEFORE) == ([name] if grown else [])


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="names of threads are read from /proc")
def test_one_leaked_thread_per_call_is_seen(start_daemon: Callable[..., RunningDaemon]) -> None:
    """
    In a daemon with that fault; Stats, which the watch itself calls, has it.

    The descriptor of the first call's connection may be closed after the second call is counted.
    """
    daemon = start_daemon([sys.executable, "-c", LEAKING])
    before = Held.by(daemon)
    assert set(Held.by(daemon).more_than(before)) - {"descriptors"} == {"threads"}
    assert before.grpc_threads >= 4


def test_threads_of_this_process_are_its_own() -> None:
    """A thread of Python is none of gRPC's."""
    before, ours = grpc_threads(os.getpid()), own_threads(os.getpid())
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert own_threads(os.getpid()) == ours + 1
        assert grpc_threads(os.getpid()) == before
    finally:
        end.set()
        thread.join()
