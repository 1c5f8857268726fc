"""
Where a token of a prompt lies in its request: in which message, and at which character of it. Pure.

A template writes the messages of a conversation into one text, each content in its place, and says nothing about where.
The contents are looked for in that text twice: in order from its start, each as early as possible, and in order from
its end, each as late as possible. All ways to place them lie between these two. A content that has the same place in
both is found; any other, such as "user" beside a mark with that word, is not known. A content that the template leaves
out is not found either, unless the template has the same words of its own there.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LEAST_LEAD = 1
"""One token in common, such as a BOS, says nothing about two prompts."""

_PATIENCE = 8
"""Contents that may be missing from the text, as a template may rewrite some; each is a search through all of it."""


class TokenIds(list[int]):
    """
    Token ids of a text.

    Attributes:
        starts: The character at which each token begins, ascending; -1 for special tokens that were put before the
            text. None if the tokenizer does not tell.
    """

    starts: Sequence[int] | None = None


def starts_of(offsets: Iterable[tuple[int, int]]) -> array[int]:
    """Return where tokens begin, from the first and last character of each; special tokens have no width."""
    starts, last = array("i"), -1
    for start, stop in offsets:
        last = max(last, start) if stop > start else last
        starts.append(last)
    return starts


class Place(NamedTuple):
    """
    A place in a request.

    Attributes:
        message: Index of the message; None for a prompt that is text, or if it is not known.
        character: Characters of the message's content, or of the text, before it; None if that is not known.
    """

    message: int | None = None
    character: int | None = None


class Span(NamedTuple):
    """
    The content of a message in the text of a prompt.

    Attributes:
        start: Its first character.
        stop: The character after its last.
        message: Index of the message; None for a prompt that is text.
        skipped: Characters of the content that come before and were left out.
    """

    start: int
    stop: int
    message: int | None
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Places:
    """
    The places of a prompt's tokens.

    Attributes:
        starts: See `TokenIds`.
        end: Characters of the text.
        spans: The contents with known places, in order.
    """

    starts: Sequence[int]
    end: int
    spans: Sequence[Span]

    @property
    def lead(self) -> int:
        """Tokens before the first content: other prompts of the same template begin with them too."""
        first = self.spans[0].start if self.spans else 0
        return max(LEAST_LEAD, bisect_left(self.starts, first))

    def at(self, token: int) -> Place:
        """Return the place of a token, by its index."""
        if not 0 <= token < len(self.starts):
            return Place()
        begin = self.starts[token]
        stop = self.starts[token + 1] if token + 1 < len(self.starts) else self.end
        index = bisect_right(self.spans, begin, key=lambda span: span.start)
        if index and begin <= self.spans[index - 1].stop:
            span = self.spans[index - 1]
            return Place(span.message, begin - span.start + span.skipped)
        if index < len(self.spans) and self.spans[index].start < stop:  # the token reaches into the next content
            return Place(self.spans[index].message, self.spans[index].skipped)
        return Place()


def places_of(ids: Sequence[int], text: str, contents: Sequence[str] | None) -> Places | None:
    """
    Return the places of a prompt's tokens; None if the tokenizer does not tell where they begin.

    Args:
        ids: The prompt.
        text: The text that it was made of.
        contents: The contents of the messages that a template wrote into it; None if the text is the prompt itself.
    """
    starts = ids.starts if isinstance(ids, TokenIds) else None
    if starts is None:
        return None
    spans = [Span(0, len(text), None)] if contents is None else spans_of(text, contents)
    return Places(starts, len(text), spans)


def spans_of(text: str, contents: Sequence[str]) -> list[Span]:
    """Return the places of contents in a text, in order; those that are not certain are left out."""
    needles = [content.strip() for content in contents]  # templates strip them too
    early = _in_order(text, needles)
    # Backwards by reversal: a search from the right can take quadratic time.
    late = _in_order(text[::-1], [needle[::-1] for needle in reversed(needles)])[::-1]
    spans = []
    for message, (needle, start, from_end) in enumerate(zip(needles, early, late, strict=True)):
        if start is not None and from_end is not None and start == len(text) - from_end - len(needle):
            skipped = len(contents[message]) - len(contents[message].lstrip())
            spans.append(Span(start, start + len(needle), message, skipped))
    return spans


def _in_order(text: str, needles: Sequence[str]) -> list[int | None]:
    """Return where each needle is found behind those before it, as early as possible; None for those that are not."""
    places: list[int | None] = []
    cursor = missing = 0
    for needle in needles:
        at = text.find(needle, cursor) if needle and missing < _PATIENCE else -1
        missing += bool(needle) and at < 0
        places.append(at if at >= 0 else None)
        cursor = at + len(needle) if at >= 0 else cursor
    return places
