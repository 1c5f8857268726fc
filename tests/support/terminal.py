"""Runs `mlx-sidecar` in a pseudo-terminal, with an emulator that keeps its screen."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyte

from tests.support.daemons import END_SECONDS

COLUMNS, LINES = 110, 34
_PROGRAM = """\
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches it
from daemon.cli import main
main(prog_name="mlx-sidecar")
"""


def _without_size(environ: dict[str, str]) -> dict[str, str]:
    """Return variables without those that would count more than the size of the terminal itself."""
    return {name: value for name, value in environ.items() if name not in ("COLUMNS", "LINES")}


class _Screen(pyte.Screen):
    """A screen that answers queries of the cursor's position."""

    answer: Callable[[str], None]

    def write_process_input(self, data: str) -> None:
        self.answer(data)


class Terminal:
    """
    A terminal in which `mlx-sidecar` runs.

    Attributes:
        screen: What it shows; `buffer` has each character with its colours.
    """

    def __init__(self, arguments: list[str], environ: dict[str, str], columns: int, lines: int) -> None:
        self.screen = _Screen(columns, lines)
        self.screen.answer = self.type
        self._stream = pyte.ByteStream(self.screen)
        self._fd, program_end = os.openpty()
        fcntl.ioctl(program_end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        # Not pty.fork: gRPC, which the tests have running, does not survive it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *arguments],
            env={**_without_size(environ), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
            stdin=program_end,
            stdout=program_end,
            stderr=program_end,
            start_new_session=True,
        )
        os.close(program_end)

    @property
    def text(self) -> str:
        """The screen's lines."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def type(self, keys: str) -> None:
        """Type keys."""
        os.write(self._fd, keys.encode())

    def until(self, pattern: str) -> None:
        """Wait until the screen matches a pattern; fail if the program ends first, or after a timeout."""
        deadline = time.monotonic() + END_SECONDS
        while not re.search(pattern, self.text, re.MULTILINE):
            assert time.monotonic() < deadline, f"waited in vain for {pattern!r}:\n{self.text}"
            assert self._show(), f"it ended without {pattern!r}:\n{self.text}"

    def wait(self) -> int:
        """Wait for the program's end, and return its exit status."""
        deadline = time.monotonic() + END_SECONDS
        while self._show():
            assert time.monotonic() < deadline, f"waited in vain for its end:\n{self.text}"
        return self._process.wait(END_SECONDS)

    @property
    def as_it_was(self) -> bool:
        """Whether the program restored the cursor and the line settings of the terminal."""
        echoes = termios.ECHO | termios.ICANON
        return not self.screen.cursor.hidden and termios.tcgetattr(self._fd)[3] & echoes == echoes

    def colours(self) -> set[str]:
        """Return the colours on the screen."""
        return {character.fg for line in self.screen.buffer.values() for character in line.values()}

    def close(self) -> None:
        """End the program if it still runs."""
        self._process.kill()
        self._process.wait(END_SECONDS)
        os.close(self._fd)

    def _show(self) -> bool:
        """Feed the program's next output to the screen, and tell whether the program still runs."""
        if select.select([self._fd], [], [], 0.1)[0]:
            try:
                self._stream.feed(os.read(self._fd, 65536))
            except OSError:  # how Linux tells the end
                return False
        return self._process.poll() is None


@contextmanager
def terminal(
    environ: dict[str, str], *arguments: str, columns: int = COLUMNS, lines: int = LINES
) -> Iterator[Terminal]:
    """Run `mlx-sidecar ARGUMENTS` in a terminal until the block ends."""
    shown = Terminal(list(arguments), environ, columns, lines)
    try:
        yield shown
    finally:
        shown.close()
