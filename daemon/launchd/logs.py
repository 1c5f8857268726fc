"""Reading the service's log files: the last lines, new lines as they are written, and files that are rotated."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

POLL_SECONDS = 0.2
TAIL_LINES = 3
TAIL_BYTES = 2000


def last_lines(path: Path, count: int) -> tuple[list[str], int]:
    """
    Return the last `count` whole lines of a file without their ends, and the position behind them for `follow`.

    A file that does not exist has no lines and the position 0.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            lines: deque[bytes] = deque(maxlen=count)
            end = 0
            for line in file:
                if line.endswith(b"\n"):
                    lines.append(line)
                    end += len(line)
    except FileNotFoundError:
        return [], 0
    return [_text(line) for line in lines], end


def follow(path: Path, position: int, pause: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """
    Yield each line that is written to a file behind a position, for ever.

    The file may appear later, be renamed and replaced, or be truncated.

    Raises:
        OSError: If it cannot be read.
    """
    while True:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            pause(POLL_SECONDS)
            continue
        with file:
            file.seek(position)
            yield from _until_replaced(file, path, pause)
        position = 0


def _until_replaced(file: BinaryIO, path: Path, pause: Callable[[float], None]) -> Iterator[str]:
    part = b""
    while True:
        # Tested before the read: lines written between this test and the replacement are still read below.
        replaced = not _is_current(file, path)
        while line := file.readline():
            part += line
            if part.endswith(b"\n"):
                yield _text(part)
                part = b""
        if replaced:
            return
        pause(POLL_SECONDS)


def _is_current(file: BinaryIO, path: Path) -> bool:
    """Tell whether a path still leads to an open file, and the file was not truncated."""
    status = os.fstat(file.fileno())
    try:
        return os.path.samestat(status, path.stat()) and status.st_size >= file.tell()
    except FileNotFoundError:
        return False


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\n")


class LogTail:
    """
    Remembers the length of a file at its construction; `read` returns the end of the text written since.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size if path.is_file() else 0

    def read(self) -> str:
        """Return the last new lines, joined by slashes; empty if there are none, or the file cannot be read."""
        lines = [line.strip() for line in self._new().splitlines() if line.strip()]
        return " / ".join(lines[-TAIL_LINES:])

    def mentions(self, words: str) -> bool:
        """Tell whether the last new lines, or some lines before them, have some words."""
        return words in self._new()

    def _new(self) -> str:
        try:
            with self._path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                # A file shorter than before was replaced, so all of it is new.
                start = self._start if end >= self._start else 0
                file.seek(max(start, end - TAIL_BYTES))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""
