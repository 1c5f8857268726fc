"""Reads JSON while it is written, and passes it on unchanged: its spaces, its numbers and the order of its keys."""

from __future__ import annotations

import json
import math
import re

from daemon.engine.output.reader import Malformed, Reader, Sink, Steps

MOST_DEPTH = 100
"""Objects and lists within each other; deeper JSON is none. Readers of the result recurse."""

MOST_DIGITS = 400
"""Characters of a number. Python and JavaScript read no longer ones exactly."""

_PLAIN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]*')
_ESCAPE = re.compile(
    r"""\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[\da-fA-F]{4}|u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2})""",
    re.ASCII,
)
_WORD = re.compile(r"[-+.0-9A-Za-z_]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS = ("true", "false", "null")
_CLOSES = {"{": "}", "[": "]"}


def is_number(text: str) -> bool:
    """Return whether a text is a JSON number that can be read as one: not as infinite."""
    if len(text) > MOST_DIGITS or not _NUMBER.fullmatch(text):
        return False
    return math.isfinite(float(text))


def quoted(text: str) -> str:
    """Return the JSON of a string without its quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def read_json(reader: Reader, sink: Sink) -> Steps[None]:
    """
    Read one value, and pass its text on as it comes.

    A line end or another control character within a string, which models write and JSON forbids, is passed on escaped.

    Args:
        reader: Its next character, white space apart, begins the value.
        sink: Takes the text.

    Raises:
        Malformed: If the text is no JSON value, or one that cannot be read everywhere: half a surrogate pair, a number
            that is none, too deep.
    """
    yield from reader.space()
    open_: list[str] = []
    while True:
        if not (yield from _read_item(reader, open_, sink)):
            continue  # an object or a list has begun, and its first value comes next
        while open_:
            yield from reader.space(sink)
            mark = yield from reader.maybe(",", _CLOSES[open_[-1]])
            if mark == ",":
                sink(mark)
                yield from reader.space(sink)
                if open_[-1] == "{":
                    yield from _read_key(reader, sink)
                break
            if not mark:
                raise Malformed("a value is followed by neither a comma nor an end")
            open_.pop()
            sink(mark)
        if not open_:
            return


def read_string(reader: Reader, sink: Sink) -> Steps[None]:
    """
    Read a JSON string, and pass on its text with both quotes.

    Raises:
        Malformed: If the text is no JSON string.
    """
    yield from reader.literal('"')
    sink('"')
    while True:
        yield from reader.run(_PLAIN, sink)
        ahead = yield from reader.peek()
        if ahead == '"':
            sink(reader.take(1))
            return
        if ahead == "\\":
            yield from _read_escape(reader, sink)
        elif ahead and ahead < " ":
            sink(quoted(reader.take(1)))
        else:
            raise Malformed("a string does not end")


def _read_item(reader: Reader, open_: list[str], sink: Sink) -> Steps[bool]:
    """Read a whole simple value, or the beginning of an object or a list; return whether the value is whole."""
    ahead = yield from reader.peek()
    if ahead == '"':
        yield from read_string(reader, sink)
        return True
    if not ahead or ahead not in _CLOSES:
        yield from _read_word(reader, sink)
        return True
    if len(open_) == MOST_DEPTH:
        raise Malformed("values are too deep within each other")
    sink(reader.take(1))
    yield from reader.space(sink)
    if (yield from reader.maybe(_CLOSES[ahead])):
        sink(_CLOSES[ahead])
        return True
    open_.append(ahead)
    if ahead == "{":
        yield from _read_key(reader, sink)
    return False


def _read_key(reader: Reader, sink: Sink) -> Steps[None]:
    yield from read_string(reader, sink)
    yield from reader.space(sink)
    yield from reader.literal(":")
    sink(":")
    yield from reader.space(sink)


def _read_word(reader: Reader, sink: Sink) -> Steps[None]:
    pieces: list[str] = []
    yield from reader.run(_WORD, pieces.append)
    word = "".join(pieces)
    if word not in _WORDS and not is_number(word):
        raise Malformed("this is no JSON value")
    sink(word)


def _read_escape(reader: Reader, sink: Sink) -> Steps[None]:
    """Read an escaped character; of a character outside of the basic plane, both halves."""
    size = 2
    if (yield from reader.peek(2)) == "\\u":
        size = 6
        digits = yield from reader.peek(6)
        if digits[2:4].lower() in ("d8", "d9", "da", "db"):
            size = 12
    text = yield from reader.peek(size)
    if not _ESCAPE.fullmatch(text):
        raise Malformed("an escaped character is none")
    sink(reader.take(size))
