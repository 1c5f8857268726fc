"""Keys as they are pressed, for a full screen."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_QUIT = {"q", "Q", "\x04"}

Wait = Callable[[float], bool]
"""Waits so many seconds, or until a key is pressed, and tells whether to quit."""


@contextmanager
def quit_key() -> Iterator[Wait]:
    """Read keys of the terminal on standard input without echo, and leave it as it was."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield lambda seconds: _pressed(fd, seconds)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _pressed(fd: int, seconds: float) -> bool:
    if not select.select([fd], [], [], seconds)[0]:
        return False
    typed = os.read(fd, 64)
    return not typed or bool(_QUIT & set(typed.decode("utf-8", "replace")))
