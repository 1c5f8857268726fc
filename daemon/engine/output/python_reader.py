"""Reads Python literals while they are written, and passes them on as JSON."""

from __future__ import annotations

import re

from daemon.engine.output.json_reader import MOST_DEPTH, is_number, quoted
from daemon.engine.output.reader import Malformed, Reader, Sink, Steps

_PLAIN = {quote: re.compile(rf"[^{quote}\\\ud800-\udfff]*") for quote in "'\""}
_WORD = re.compile(r"[-+.0-9A-Za-z_]*")
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": "",
    "\\": "\\", "'": "'", '"': '"', "/": "/",
}  # fmt: skip
_CODES = {"x": 2, "u": 4, "U": 8}
_FOLLOWERS = (",", ")", "]", "}", ":")
"""What can follow a string. A quote before anything else belongs to it: some templates write strings unescaped."""

_CLOSES = {"[": "]", "(": ")", "{": "}"}


def read_python(reader: Reader, sink: Sink, depth: int = 0) -> Steps[None]:
    """
    Read a literal: a string, number, list, tuple or dict, True, False or None, or the JSON spelling of one of them.

    Args:
        reader: Its next character, white space apart, begins the literal.
        sink: Takes the JSON.
        depth: Lists and dicts around it.

    Raises:
        Malformed: If the text is no literal, or has no JSON: a key of a dict is no string, a surrogate is half.
    """
    yield from reader.space()
    ahead = yield from reader.peek()
    if ahead in ("'", '"'):
        yield from read_python_string(reader, sink)
    elif ahead in ("[", "(", "{") and depth < MOST_DEPTH:
        yield from _read_items(reader, sink, depth)
    else:
        yield from _read_word(reader, sink)


def read_python_string(reader: Reader, sink: Sink) -> Steps[None]:
    """
    Read a string in single or double quotes, or in three of them.

    Raises:
        Malformed: If the text is no such string.
    """
    quote = yield from reader.peek()
    if quote not in _PLAIN:
        raise Malformed("this is no string")
    ahead = yield from reader.peek(3)
    mark = reader.take(3 if ahead == 3 * quote else 1)
    sink('"')
    if ahead[:2] == 2 * quote and len(mark) == 1:
        reader.take(1)  # an empty string
        sink('"')
        return
    while True:
        yield from reader.run(_PLAIN[quote], lambda text: sink(quoted(text)))
        if (yield from reader.maybe(mark)):
            if (yield from reader.follows(*_FOLLOWERS)) or reader.exhausted:
                sink('"')
                return
            sink(quoted(mark))
            continue
        ahead = yield from reader.peek()
        if ahead == "\\":
            reader.take(1)
            sink(quoted((yield from _read_escape(reader))))
        elif ahead == quote and len(mark) > 1:
            sink(quoted(reader.take(1)))
        else:
            raise Malformed("a string does not end")


def _read_escape(reader: Reader) -> Steps[str]:
    """Return the character that an escape stands for; its backslash is taken."""
    letter = yield from reader.peek()
    if letter in _CODES:
        code = yield from _read_code(reader)
        if 0xD800 <= code <= 0xDBFF and (yield from reader.peek(2)) == "\\u":
            reader.take(1)  # JSON writes a character outside of the basic plane as two halves
            low = yield from _read_code(reader)
            code = 0x10000 + ((code - 0xD800) << 10) + low - 0xDC00 if 0xDC00 <= low <= 0xDFFF else code
        if code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
            return chr(code)
        raise Malformed("an escaped character is none")
    if not letter:
        raise Malformed("a string does not end")
    # As in Python, the backslash before any other letter is a backslash.
    return _ESCAPES.get(reader.take(1), "\\" + letter)


def _read_code(reader: Reader) -> Steps[int]:
    """Return the code of a character, of which the letter before its digits comes next."""
    letter = yield from reader.peek()
    digits = (yield from reader.peek(1 + _CODES[letter]))[1:]
    if len(digits) < _CODES[letter] or not re.fullmatch("[0-9a-fA-F]+", digits):
        raise Malformed("an escaped character is none")
    reader.take(1 + len(digits))
    return int(digits, 16)


def _read_items(reader: Reader, sink: Sink, depth: int) -> Steps[None]:
    opened = reader.take(1)
    closed = _CLOSES[opened]
    sink("{" if opened == "{" else "[")
    first = True
    while True:
        yield from reader.space()
        if (yield from reader.maybe(closed)):
            break
        if not first:
            sink(", ")
        first = False
        if opened == "{":
            yield from read_python_string(reader, sink)
            yield from reader.space()
            yield from reader.literal(":")
            sink(": ")
        yield from read_python(reader, sink, depth + 1)
        yield from reader.space()
        if not (yield from reader.maybe(",")):
            yield from reader.literal(closed)
            break
    sink("}" if opened == "{" else "]")


def _read_word(reader: Reader, sink: Sink) -> Steps[None]:
    pieces: list[str] = []
    yield from reader.run(_WORD, pieces.append)
    word = "".join(pieces)
    if word not in _WORDS and not is_number(word):
        raise Malformed("this is no value")
    sink(_WORDS.get(word, word))
