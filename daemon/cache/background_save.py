"""Saves the latest state of something on a thread of its own, so that a disk that hangs stops no caller."""

from __future__ import annotations

import threading
from collections.abc import Callable

WAIT_SECONDS = 1.0
"""How long a caller waits for its save: a disk that works takes milliseconds."""


class BackgroundSave:
    """
    Saves in the background, one save at a time. Any thread.

    A request during a save leads to one more save after it, however many requests there are::

        idle --request--> saving --request--> saving, changed since
          ^                 |                        |
          +---- saved ------+ <-------- saved -------+

    Args:
        save: Writes the state as it is when it is called. It runs on another thread, and may hang.
        wait: Seconds that a request waits for its save at most; `WAIT_SECONDS` if None.
    """

    def __init__(self, save: Callable[[], None], wait: float | None = None) -> None:
        self._save = save
        self._wait = wait
        self._lock = threading.Lock()
        self._is_saving = False
        self._has_changed = False

    def request(self) -> None:
        """Have the state saved. Waits for the save for so long at most, and not at all if another one goes on."""
        with self._lock:
            self._has_changed = True
            if self._is_saving:
                return
            self._is_saving = True
        thread = threading.Thread(target=self._run, name="save", daemon=True)  # the process may end while it hangs
        try:
            thread.start()
        except RuntimeError:  # no thread is to be had; the next request tries again
            self._is_saving = False
            return
        thread.join(WAIT_SECONDS if self._wait is None else self._wait)

    def _run(self) -> None:
        while self._must_save():
            try:
                self._save()
            except BaseException:
                self._is_saving = False
                raise

    def _must_save(self) -> bool:
        with self._lock:
            self._is_saving, self._has_changed = self._has_changed, False
            return self._is_saving
