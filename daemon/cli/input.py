"""Text that a command reads: words of the command line, and standard input."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Sequence

import click

HINT_SECONDS = 3.0
"""Seconds without a byte after which a command says that it waits for standard input."""


def joined(words: Sequence[str]) -> str:
    """Return the words of an unquoted text as one text."""
    return " ".join(words)


def read_stdin() -> str:
    """
    Return the whole of standard input.

    Raises:
        UsageError: If it is no UTF-8 text.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise click.UsageError("The prompt on standard input is not UTF-8 text.") from None
    except OSError as error:
        raise click.FileError("standard input", error.strerror) from None


def piped() -> str:
    """Return what is piped into the command; nothing from a terminal or a device, such as /dev/null."""
    if not _has_text():
        return ""
    _hint()
    return read_stdin()


def _has_text() -> bool:
    """Tell whether standard input is a pipe, a file or a socket. A closed one, and that of tests, is taken as it is."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return sys.stdin is not None and not sys.stdin.closed and not sys.stdin.isatty()
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _hint() -> None:
    """Say what the command waits for, if nothing comes for a while: a program may have left its own pipe open."""
    try:
        ready, _, _ = select.select([sys.stdin.fileno()], [], [], HINT_SECONDS)
    except (OSError, ValueError):
        return
    if not ready:
        click.echo("Waiting for the end of standard input; without any, add: < /dev/null", err=True)
