"""
Reads the tool calls in an answer: an attempt that fails leaves its text to be read as text.

The parser of a notation reads calls (`notations/`). Where it fails, the reader goes back behind the last whole call, or
to the mark that began the attempt. What follows can be read as text, and another call may stand there. Each attempt
reads its text once more, so the attempts of an answer are limited, and the time stays linear.
"""

from __future__ import annotations

from collections.abc import Sequence

from daemon.engine.output.notations.notation import Notation
from daemon.engine.output.reader import Malformed, Reader, Steps
from daemon.engine.output.tool_calls import CallWriter, Tool

MOST_AGAIN = 256 * 1024
"""Characters that failed attempts may read again, besides twice the length of the answer. Then marks are text."""


class CallAttempts:
    """
    Reads the calls of one answer, a block at a time.

    Args:
        notation: How the model writes calls; None if that is not known.
        tools: The tools that the model may call.
        reader: The text of the answer.

    Attributes:
        tools: The tools that may be called; none without a notation.
        writer: Takes the calls that are read.
        blocks: Blocks that began with their mark, calls or not.
        unread: Why the last text behind the mark of a block was no call; empty if each was one.
        in_block: Whether a block is read that began with its mark.
    """

    def __init__(self, notation: Notation | None, tools: Sequence[Tool], reader: Reader) -> None:
        self.tools = tools if notation is not None else ()
        self.writer = CallWriter(self.tools, reader.keep)
        self.blocks = 0
        self.unread = ""
        self._notation = notation
        self._reader = reader
        self.in_block = False
        self._read_again = 0
        """Characters that failed attempts have read."""

    @property
    def allowed(self) -> bool:
        """Whether the answer may have blocks: with tools, or if a text has a header of the notation too."""
        return bool(self.tools) or (self._notation is not None and self._notation.addressed)

    @property
    def exhausted(self) -> bool:
        """Whether failed attempts have read so much again that no other is made."""
        return self._read_again > MOST_AGAIN + 2 * self._reader.position

    @property
    def written(self) -> str:
        """What was written since the mark of the block that is being read; empty if none is."""
        return self._reader.kept() if self.in_block else ""

    def read(self, *, marked: bool) -> Steps[bool]:
        """
        Read a block of calls.

        Args:
            marked: Whether the block begins with its mark.

        Returns:
            Whether anything of it was read: whole calls, or a header. The reader is behind that, else before the mark.
        """
        notation, reader = self._notation, self._reader
        assert notation is not None
        self.in_block = marked
        self.blocks += marked
        before = reader.keep()
        try:
            yield from notation.read(reader, self.writer)
        except Malformed as error:
            if marked:
                self.unread = str(error)
            self.writer.withdraw()
            self._go_back(reader.kept_from or 0)
        reader.forget()
        self.in_block = False
        return reader.position > before

    def read_last(self) -> Steps[bool]:
        """Read calls that end the answer. Return False if there are none, or if anything follows them."""
        notation, reader = self._notation, self._reader
        assert notation is not None
        before = reader.keep()
        found = CallWriter(self.tools, lambda: before, self.writer.count)
        try:
            while not reader.exhausted:
                yield from notation.read(reader, found)
                yield from reader.space()
            last = reader.by_model
        except Malformed:
            last = False
        if last:
            self.writer.take_over(found)
        else:
            self._go_back(before)
        reader.forget()
        return last

    def _go_back(self, position: int) -> None:
        self._read_again += self._reader.position - position
        self._reader.back_to(position)
