"""
Remembers what was found out about folders of models, for as long as their files stay unchanged.

Each call looks up its model anew, since its files may have changed. To check and name a model of sixty files takes
longer than a decode step, and holds up the thread that decodes. The stamps of its files say for a tenth of that time
that nothing changed.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from daemon.cache.digests import SETTLED_NS, Stamp
from daemon.cache.lru_dict import LruDict

State = tuple[tuple[str, Stamp], ...]
"""Names and stamps of a folder's files."""

MOST_FOLDERS = 256
"""Findings that are remembered: more than the models that are used in turn."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def state_of(folder: Path, wanted: Callable[[str], bool]) -> State:
    """
    Return the names and stamps of a folder's regular files, links followed, sorted by name.

    Args:
        folder: The folder; those below it are left out.
        wanted: Whether a file of this name counts.

    Raises:
        OSError: If the folder cannot be listed. A file that cannot be looked at is left out.
    """
    stamps = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not wanted(entry.name):
                continue
            try:
                status = entry.stat()
            except OSError:  # a link to nothing, or gone meanwhile
                continue
            if stat.S_ISREG(status.st_mode):
                stamps.append((entry.name, Stamp.from_status(status)))
    return tuple(sorted(stamps, key=lambda named: named[0]))


class Findings(Generic[K, V]):
    """
    Findings about folders, by a key. Any thread.

    They count while the files that they were read from have the stamps that these had before.
    A file that was written just before is not trusted: see `SETTLED_NS`.

    Args:
        now_ns: Returns the time by the file system's clock, in nanoseconds.
        most: Findings that are remembered.
    """

    def __init__(self, now_ns: Callable[[], int] = time.time_ns, most: int = MOST_FOLDERS) -> None:
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._known = LruDict[K, tuple[tuple[State, ...], V]](most)

    def get(self, key: K, folders: Iterable[Path], find: Callable[[], V]) -> V:
        """
        Return what was found out before if no JSON or safetensors file changed since, and else find it out.

        Args:
            key: What is asked for.
            folders: It depends on files of these.
            find: Finds it out from files of these kinds. An error of it is raised, and nothing is remembered.
        """
        try:
            states = tuple(state_of(folder, _is_read) for folder in folders)
        except OSError:
            return find()  # it says what is wrong
        return self.of(key, states, find)

    def of(self, key: K, states: tuple[State, ...], find: Callable[[], V]) -> V:
        """
        Return what was found out of files in these states, and else find it out.

        Args:
            key: What is asked for.
            states: The states, looked up by this call's caller, of all files that it depends on.
            find: As for `get`.
        """
        with self._lock:
            known = self._known.get(key)
        if known is not None and known[0] == states:
            return known[1]
        settled = self._now_ns() - SETTLED_NS
        found = find()
        if all(stamp.ctime_ns < settled for state in states for _, stamp in state):
            with self._lock:
                self._known.put(key, (states, found))
        return found


def _is_read(name: str) -> bool:
    return name.endswith((".json", ".safetensors"))
