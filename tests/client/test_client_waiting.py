"""Calls that come while no daemon runs wait for it together: each for two seconds, whatever others wait as well."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_sidecar import AsyncClient, Client, DaemonNotRunning, _aio, _client
from tests.client.scripted import PATIENCE

CALLS = 5
LOOKS = 4 + CALLS - 1
"""Four of the first call, half a second each, and one of each other."""


class Absent:
    """
    A socket that does not exist, and a clock that moves by half a second with each look for it.

    Args:
        monkeypatch: Puts both into the place of the real ones.
        module: The client's module.
        threads: Threads whose calls have begun before the first look ends.

    Attributes:
        looks: How often it was looked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, threads: int) -> None:
        self.looks = 0
        self._threads = threads
        self._seen: set[int] = set()
        self._begun = threading.Event()
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=self._now, sleep=lambda _seconds: None))
        monkeypatch.setattr(module, "POLL_INTERVAL", 0)
        monkeypatch.setattr(module, "socket_exists", self._look)

    def _now(self) -> float:
        self._seen.add(threading.get_ident())
        if len(self._seen) == self._threads:
            self._begun.set()
        return self.looks / 2

    def _look(self, _path: Path) -> bool:
        assert self._begun.wait(PATIENCE)
        self.looks += 1
        return False


def test_calls_of_many_threads_wait_together(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Absent(monkeypatch, _client, threads=CALLS)
    with Client(socket) as client, ThreadPoolExecutor(CALLS) as pool:
        calls = [pool.submit(client.stats) for _ in range(CALLS)]
        assert {type(call.exception(PATIENCE)) for call in calls} == {DaemonNotRunning}
    assert absent.looks == LOOKS


async def test_calls_of_many_tasks_wait_together(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP door has hundreds: one after the other they would wait for minutes."""
    absent = Absent(monkeypatch, _aio, threads=1)
    async with AsyncClient(socket) as client:
        calls = [client.stats() for _ in range(CALLS)]
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in found} == {DaemonNotRunning}
    assert absent.looks == LOOKS
