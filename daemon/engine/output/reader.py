"""Reads the text of an answer while it is written: parsers are generators that wait for text that is not there yet."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TypeAlias, TypeVar

# How a parser reads
#
# A parser is a generator. It takes characters from a Reader, and yields whenever the next characters are not written
# yet; its driver then waits for more text and goes on. So a parser reads like one for a whole text, and its result does
# not depend on how the text was cut.
#
#       taken before       kept since `keep`      not taken
#     ------------------|----------------------|-----------------------
#                       kept                 position             written so far
#
# A parser that may turn out to be wrong calls `keep` first. `back_to` returns to any position since then.

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""A parser: it yields while it waits for text, and returns what it read."""

Sink: TypeAlias = Callable[[str], None]
"""Takes pieces of text, in order."""

MOST_KEPT = 256 * 1024
"""Characters that one attempt to read a call may keep; a longer call is text."""

MOST_SPACE = 1024
"""Characters of white space behind which a text is looked for."""

_SPACE = re.compile(r"[ \t\r\n]*")


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Return where the match of a pattern ends that may be empty."""
    match = pattern.match(text, start)
    assert match is not None
    return match.end()


class Malformed(Exception):  # noqa: N818 - the text is malformed, the program is not
    """The text is not what the parser reads. The text stays, and something else may read it."""


class Cut(Malformed):
    """The text has ended too early."""


class Reader:
    """
    The text of an answer, as far as it is written.

    Attributes:
        position: Characters taken so far.
        ended: Whether the answer is complete.
        by_model: Whether the model ended the answer by itself, so that nothing is missing at its end.
        kept_from: Position of the first character that is kept; None if none is.
    """

    def __init__(self) -> None:
        self.position = 0
        self.ended = False
        self.by_model = False
        self._text = ""
        """Text of which the first `_taken` characters are taken."""
        self._taken = 0
        self._kept: list[str] = []
        """Text that was taken since `kept_from`, except that of `_text`."""
        self._kept_at = 0
        """Where the kept text goes on in `_text`."""
        self.kept_from: int | None = None

    def add(self, text: str) -> None:
        """Add text that was written."""
        if self.kept_from is not None:
            self._kept.append(self._text[self._kept_at : self._taken])
        self._text = self._text[self._taken :] + text
        self._taken = self._kept_at = 0

    def end(self, *, by_model: bool) -> None:
        """Tell that no more text will be written."""
        self.ended = True
        self.by_model = by_model

    def keep(self) -> int:
        """Keep the text from here on, and return the position. Forgets what was kept before."""
        self._kept.clear()
        self._kept_at = self._taken
        self.kept_from = self.position
        return self.position

    def forget(self) -> None:
        """Keep no text any more."""
        self._kept.clear()
        self.kept_from = None

    def kept(self) -> str:
        """Return the text that is kept, up to what is written."""
        return "".join(self._kept) + self._text[self._kept_at :]

    def back_to(self, position: int) -> None:
        """Return to a position since `keep`; the text behind it can be taken again."""
        assert self.kept_from is not None
        assert self.kept_from <= position <= self.position
        if self._kept:
            self._text = self.kept()
            self._kept.clear()
            self._kept_at = 0
        self._taken = self._kept_at + position - self.kept_from
        self.position = position

    def rest(self) -> str:
        """Return the text that is written and not taken."""
        return self._text[self._taken :]

    def take(self, length: int) -> str:
        """
        Take that many characters, which are written.

        Raises:
            Malformed: If more characters are kept then than one call may have.
        """
        most = length if self.kept_from is None else self.kept_from + MOST_KEPT - self.position
        size = min(length, most)
        text = self._text[self._taken : self._taken + size]
        self._taken += size
        self.position += size
        if size < length:
            raise Malformed("a call of so many characters is not read")
        return text

    def put_back(self, length: int) -> None:
        """Give back the last characters, which were taken since the parser last waited."""
        assert length <= self._taken
        self._taken -= length
        self.position -= length

    @property
    def exhausted(self) -> bool:
        """Whether the answer has ended, and nothing but white space is left."""
        return self.ended and _end(_SPACE, self._text, self._taken) == len(self._text)

    def has(self, length: int) -> Steps[bool]:
        """Wait until that many characters can be taken; return False if the answer ends before."""
        while len(self._text) - self._taken < length:
            if self.ended:
                return False
            yield
        return True

    def peek(self, length: int = 1) -> Steps[str]:
        """Return the next characters, fewer at the end of the answer, without taking them."""
        yield from self.has(length)
        return self._text[self._taken : self._taken + length]

    def literal(self, text: str) -> Steps[None]:
        """
        Take exactly this text.

        Raises:
            Malformed: As soon as a character differs.
        """
        if not (yield from self.maybe(text)):
            raise (Cut if self.ended and text.startswith(self.rest()) else Malformed)("a mark or a sign is missing")

    def maybe(self, *options: str) -> Steps[str]:
        """Take the longest of these texts that comes next, and return it; return the empty text if none does."""
        longest = max(map(len, options), default=0)
        while True:
            ahead = self._text[self._taken : self._taken + longest]
            possible = any(len(option) > len(ahead) and option.startswith(ahead) for option in options)
            if self.ended or not possible:
                break
            yield
        found = max((option for option in options if ahead.startswith(option)), key=len, default="")
        self.take(len(found))
        return found

    def space(self, sink: Sink | None = None) -> Steps[None]:
        """Take white space up to the next other character or the end."""
        while True:
            text = self.take(_end(_SPACE, self._text, self._taken) - self._taken)
            if sink is not None and text:
                sink(text)
            if self._taken < len(self._text) or self.ended:
                return
            yield

    def follows(self, *options: str) -> Steps[bool]:
        """
        Return whether white space and then one of these texts comes next, without taking it.

        White space of more than `MOST_SPACE` characters is followed by nothing.
        """
        longest = max(map(len, options))
        while True:
            end = _end(_SPACE, self._text, self._taken)
            ahead = self._text[end : end + longest]
            if end - self._taken > MOST_SPACE:
                return False
            if any(ahead.startswith(option) for option in options):
                return True
            if self.ended or not any(option.startswith(ahead) for option in options):
                return False
            yield

    def run(self, pattern: re.Pattern[str], sink: Sink) -> Steps[None]:
        """
        Take characters as long as they match, and pass them on as they come.

        Args:
            pattern: Matches any number of characters that each count alone.
            sink: Takes the characters.
        """
        while True:
            end = _end(pattern, self._text, self._taken)
            if end > self._taken:
                sink(self.take(end - self._taken))
            if self._taken < len(self._text) or self.ended:
                return
            yield

    def until(self, marks: tuple[str, ...], sink: Sink) -> Steps[str]:
        """
        Take the text before the next mark, pass it on as it comes, and take the mark.

        Args:
            marks: The marks; of two at one place the longer counts.
            sink: Takes the text.

        Returns:
            The mark; the empty text if the answer ends first.
        """
        finder = _finder(marks)
        while True:
            start, mark = finder.find(self._text, self._taken, ended=self.ended)
            if start > self._taken:
                sink(self.take(start - self._taken))
            if mark:
                self.take(len(mark))
                return mark
            if self.ended:
                return ""
            yield


class _Finder:
    """Finds marks in text that is still written."""

    def __init__(self, marks: tuple[str, ...]) -> None:
        by_length = sorted(marks, key=len, reverse=True)
        self._marks = by_length
        self._pattern = re.compile("|".join(map(re.escape, by_length))) if marks else None
        self._longest = max(map(len, marks), default=0)
        begins = {mark[:size] for mark in marks for size in range(1, len(mark))}
        self._begins = frozenset(begins)
        """All proper beginnings of marks."""

    def find(self, text: str, start: int, *, ended: bool) -> tuple[int, str]:
        """
        Return where the next mark is, and the mark.

        Without a mark, the position is up to where the text holds no mark and no beginning of one.
        """
        match = self._pattern.search(text, start) if self._pattern is not None else None
        end = len(text)
        if match is not None:
            near = len(text) - match.start() < self._longest
            whole = ended or not near or text[match.start() :] not in self._begins
            return match.start(), match.group() if whole else ""
        if ended:
            return end, ""
        for size in range(min(self._longest - 1, end - start), 0, -1):
            if text[end - size :] in self._begins:
                return end - size, ""
        return end, ""


@lru_cache(256)
def _finder(marks: tuple[str, ...]) -> _Finder:
    return _Finder(marks)


def drive(parser: Steps[T]) -> bool:
    """Go on with a parser until it waits for text; return whether it waits."""
    try:
        next(parser)
    except StopIteration:
        return False
    return True


def read_until(reader: Reader, *marks: str) -> Steps[str]:
    """
    Return the text before the next of these marks, which is taken as well.

    Raises:
        Cut: If the answer ends first.
    """
    pieces: list[str] = []
    if not (yield from reader.until(marks, pieces.append)):
        raise Cut("a mark is missing")
    return "".join(pieces)


def read_value(reader: Reader, sink: Sink, ends: tuple[str, ...], followers: tuple[str, ...]) -> Steps[None]:
    """
    Pass on the text of a value up to its end mark, which is taken as well.

    A value may hold the text of its own end mark. The mark counts only where something follows that can follow a value.

    Args:
        reader: Its next character begins the value.
        sink: Takes the text.
        ends: Forms of the end mark; of two at one place the longer counts.
        followers: What can follow a value; the end of the answer always can.

    Raises:
        Cut: If the answer ends first.
    """
    while mark := (yield from reader.until(ends, sink)):
        if (yield from reader.follows(*followers)) or reader.exhausted:
            return
        sink(mark)
    raise Cut("the end of a value is missing")
