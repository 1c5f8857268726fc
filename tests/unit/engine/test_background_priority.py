"""Threads that read weights from end to end stand back behind those that compute tokens."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.cache import digests
from daemon.cache.digests import Digests
from daemon.engine.background.thread_priority import QOS_CLASS_DEFAULT, QOS_CLASS_UTILITY, aside, standing_back


class Libc:
    """macOS's C library, which answers with `status`."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.calls: list[tuple[int, int]] = []

    def pthread_set_qos_class_self_np(self, qos: int, relative: int) -> int:
        """Note the call."""
        self.calls.append((qos, relative))
        return self.status


@pytest.mark.skipif(sys.platform != "linux", reason="asks for the policy as Linux has it")
def test_lower_priority_applies_to_the_calling_thread() -> None:
    seen: list[int] = []
    system: Any = os  # the types of a Mac have none of these names

    def work() -> None:
        seen.append(system.sched_getscheduler(0))
        with standing_back():
            seen.append(system.sched_getscheduler(0))
        seen.append(system.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    usual = system.sched_getscheduler(0)
    assert seen == [usual, system.SCHED_IDLE, usual]


def test_mac_thread_priority_is_the_utility_class() -> None:
    libc = Libc(0)
    with pytest.raises(KeyError), standing_back("darwin", libc):
        raise KeyError
    assert libc.calls == [(QOS_CLASS_UTILITY, 0), (QOS_CLASS_DEFAULT, 0)]


def test_refused_thread_priority_is_logged() -> None:
    with capture_logs() as logs:
        for libc in (Libc(22), object()):
            with standing_back("darwin", libc):
                pass
        with standing_back("sunos5"):
            pass
    assert [entry["event"] for entry in logs] == ["thread_priority_unchanged"] * 4


def test_only_large_weights_are_read_at_low_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are read while a request is prepared: their caller waits for nothing else."""
    monkeypatch.setattr(digests, "QUICK_BYTES", 100)
    stood: list[str] = []

    @contextmanager
    def back() -> Any:
        stood.append("back")
        yield lambda seconds: stood.append("rest")
        stood.append("forward")

    known = Digests(aside=back)
    for name, size in (("small", 100), ("large", 101)):
        (tmp_path / name).write_bytes(bytes(size))
        assert len(known.digest(tmp_path / name, report=lambda done, total: None)) == 64
        assert stood == (["back", "rest", "forward"] if name == "large" else [])


def test_weight_reader_rests_while_tokens_are_decoded() -> None:
    streams, slept = iter((True, False, True)), list[float]()
    with aside(lambda: next(streams), slept.append) as rest:
        for seconds in (0.1, 0.2, 0.3):
            rest(seconds)
    assert slept == [0.1, 0.3]


def test_large_weight_file_is_read_with_rests(tmp_path: Path) -> None:
    rests, reports = list[float](), list[int]()
    file = tmp_path / "weights"
    with file.open("wb") as weights:
        weights.truncate(digests.QUICK_BYTES + (3 << 20) + 1)
    Digests(aside=lambda: nullcontext(rests.append)).digest(file, report=lambda done, total: reports.append(done))
    assert len(rests) == 68
    assert reports == [*range(8 << 20, digests.QUICK_BYTES + 1, 8 << 20), file.stat().st_size]
