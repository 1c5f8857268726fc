"""The service's log files: their last lines, what is appended to them, and files that are replaced."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

POLL_SECONDS = 0.2


def last_lines(path: Path, count: int) -> tuple[list[str], int]:
    """
    Return the last whole lines of a file, without their ends, and where `follow` goes on; no lines if there is no file.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            kept: deque[bytes] = deque(maxlen=count)
            end = 0
            for line in file:
                if line.endswith(b"\n"):
                    kept.append(line)
                    end += len(line)
    except FileNotFoundError:
        return [], 0
    return [_text(line) for line in kept], end


def follow(path: Path, position: int, pause: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """
    Yield each line that is written to a file after a position, for ever. The file may come later, be renamed and begun
    anew, or be emptied.

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
        replaced = not _is_still(file, path)  # before the reading, which takes what came up to the replacement
        while line := file.readline():
            part += line
            if part.endswith(b"\n"):
                yield _text(part)
                part = b""
        if replaced:
            return
        pause(POLL_SECONDS)


def _is_still(file: BinaryIO, path: Path) -> bool:
    """Tell whether a path still leads to an open file that has not shrunk."""
    now = os.fstat(file.fileno())
    try:
        return os.path.samestat(now, path.stat()) and now.st_size >= file.tell()
    except FileNotFoundError:
        return False


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\n")


SHOWN_LINES = 3
SHOWN_BYTES = 2000


class LogTail:
    """
    Remembers how long a file is now; `read` gives what came after that.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._from = path.stat().st_size if path.is_file() else 0

    def read(self) -> str:
        """Return the last lines that came, joined; empty if none did, or if the file cannot be read."""
        try:
            with self._path.open("rb") as file:
                end = file.seek(0, 2)
                file.seek(max(self._from if end >= self._from else 0, end - SHOWN_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " / ".join(lines[-SHOWN_LINES:])
