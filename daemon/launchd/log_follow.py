"""The end of a log file, and what comes after it, also when the daemon begins a new file."""

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
