"""Line input of a conversation: editing, history across conversations, and pasted text as one turn."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

FIRST, NEXT = ">>> ", "... "


class Terminal:
    """
    Reads turns from the terminal.

    Args:
        history: File of earlier lines, created with mode 0600; None stores no history.
    """

    def __init__(self, history: Path | None) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory() if history is None else _private(history),
            enable_history_search=True,
        )

    def ask(self) -> str | None:
        """Return the next turn; None at Ctrl-D. Ctrl-C discards the typed lines, as in a shell."""
        lines: list[str] = []
        while True:
            try:
                line = self._session.prompt(NEXT if lines else FIRST)
            except KeyboardInterrupt:
                lines = []
                continue
            except EOFError:
                return None
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line.removesuffix("\\"))


class _PrivateHistory(FileHistory):
    """A history in a file of mode 0600. A line that the file does not take, as on a full disk, is in memory alone."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            _make(Path(os.fsdecode(self.filename)))  # it may have been deleted meanwhile
            super().store_string(string)


def _private(file: Path) -> History:
    """Return a history in a file of mode 0600. If it cannot be written, print why and keep the history in memory."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(file)
    except OSError as error:
        click.echo(f"What you type is not kept for the next time: {file}: {error.strerror}.", err=True)
        return InMemoryHistory()
    return _PrivateHistory(str(file))


def _make(file: Path) -> None:
    """Make a file of mode 0600, if there is none, and raise OSError if it cannot be written."""
    os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600))
