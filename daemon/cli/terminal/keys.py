"""Unbuffered keyboard input for the full screen of `top`."""

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
"""Waits for a number of seconds or the next key, and tells whether to quit."""


@contextmanager
def quit_key() -> Iterator[Wait]:
    """Read keys from standard input without echo; the terminal's settings are restored after the block."""
    fd = sys.stdin.fileno()
    settings = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield lambda seconds: _pressed(fd, seconds)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, settings)


def _pressed(fd: int, seconds: float) -> bool:
    if not select.select([fd], [], [], seconds)[0]:
        return False
    typed = os.read(fd, 64)
    return not typed or bool(_QUIT & set(typed.decode("utf-8", "replace")))
