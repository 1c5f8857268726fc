"""A save in the background: the latest state is saved in the end, in as few saves as it takes."""

from __future__ import annotations

import threading

import pytest

from daemon.cache import background_save
from daemon.cache.background_save import BackgroundSave


def _finish() -> None:
    for thread in threading.enumerate():
        if thread.name == "save":
            thread.join(60)


def test_a_save_is_done_when_its_request_returns() -> None:
    saved: list[str] = []
    save = BackgroundSave(lambda: saved.append(threading.current_thread().name))

    save.request()
    save.request()

    assert saved == ["save", "save"]


def test_requests_during_a_save_lead_to_one_more_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_save, "WAIT_SECONDS", 0.01)
    go_on = threading.Event()
    state, saved = [0], list[int]()

    def write() -> None:
        latest = state[0]
        assert go_on.wait(60)
        saved.append(latest)

    save = BackgroundSave(write)
    for number in range(5):
        state[0] = number
        save.request()
    go_on.set()
    _finish()

    assert saved == [0, 4]


def test_a_machine_without_threads_saves_later(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[bool] = []
    save = BackgroundSave(lambda: saved.append(True))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        save.request()
    assert saved == []

    save.request()
    assert saved == [True]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_that_fails_does_not_end_saving() -> None:
    saved: list[bool] = []

    def write() -> None:
        saved.append(True)
        if len(saved) == 1:
            raise ValueError("a fault of ours")

    save = BackgroundSave(write)
    save.request()
    save.request()

    assert saved == [True, True]
