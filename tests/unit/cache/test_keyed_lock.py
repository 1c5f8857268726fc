"""Locks by key: threads with the same key work in turn, and a waiting thread lives as long as the holder does."""

from __future__ import annotations

import threading

import pytest

from daemon.cache import keyed_lock
from daemon.cache.keyed_lock import KeyedLock
from daemon.shared import liveness


def test_threads_with_the_same_key_work_in_turn_and_others_do_not_wait() -> None:
    locks = KeyedLock[str]()
    done: list[str] = []

    def work(key: str) -> None:
        with locks.locked(key):
            done.append(key)

    same, other = (threading.Thread(target=work, args=(key,), daemon=True) for key in ("a", "b"))
    with locks.locked("a"):
        same.start()
        other.start()
        other.join(60)
        assert done == ["b"]
    same.join(60)

    assert done == ["b", "a"]


def test_a_waiting_thread_shows_the_signs_of_life_of_the_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed_lock, "_LOOK_SECONDS", 0.01)
    locks = KeyedLock[str]()
    alive = threading.Event()

    def wait() -> None:
        with liveness.watched(alive.set), locks.locked("a"):
            pass

    waiting = threading.Thread(target=wait, daemon=True)
    with locks.locked("a"):
        waiting.start()
        assert not alive.is_set()
        while not alive.wait(0.01):
            liveness.moved()
    waiting.join(60)

    assert not waiting.is_alive()
