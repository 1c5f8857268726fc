"""Watches a directory with Linux's inotify, and records the modes and names of new files."""

from __future__ import annotations

import ctypes
import os
import select
import stat
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

ATTRIB, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x4, 0x40, 0x80, 0x100, 0x200
_HEADER = struct.Struct("iIII")


@dataclass(slots=True)
class Watch:
    """
    Looks at each file as soon as the kernel tells of it, in a thread, for the length of a block.

    Attributes:
        modes: For each name, the modes that it was seen with.
        events: What happened, in order: kind and name.
    """

    directory: Path
    modes: dict[str, set[int]] = field(default_factory=dict)
    events: list[tuple[int, str]] = field(default_factory=list)
    _stop: tuple[int, int] = (-1, -1)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.inotify_init1(os.O_CLOEXEC)
        mask = ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE
        if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(self.directory), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, args=[descriptor])
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._stop[1])
        assert self._thread is not None
        self._thread.join()
        os.close(self._stop[0])

    def _run(self, descriptor: int) -> None:
        """Read events until the block has ended and none is left."""
        while True:
            ready, _, _ = select.select([descriptor, self._stop[0]], [], [])
            if descriptor in ready:
                self._read(os.read(descriptor, 1 << 16))
            else:
                os.close(descriptor)
                return

    def _read(self, data: bytes) -> None:
        while data:
            _, kind, _, length = _HEADER.unpack_from(data)
            name = os.fsdecode(data[_HEADER.size : _HEADER.size + length].rstrip(b"\0"))
            data = data[_HEADER.size + length :]
            self.events.append((kind, name))
            try:
                mode = stat.S_IMODE((self.directory / name).lstat().st_mode)
            except FileNotFoundError:
                continue
            self.modes.setdefault(name, set()).add(mode)
