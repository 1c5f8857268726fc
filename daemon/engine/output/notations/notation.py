"""The interface of a notation of tool calls, and what several notations share."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from daemon.engine.output.json_reader import read_json, read_string
from daemon.engine.output.notations.syntax import CallSyntax
from daemon.engine.output.reader import Cut, Malformed, Reader, Steps, drive, read_until
from daemon.engine.output.tool_calls import CallWriter, ReadCalls


@dataclass(frozen=True, slots=True)
class Notation:
    """
    How a model writes calls.

    Attributes:
        name: The name by which docs and tests call it.
        starts: The marks that a block of calls begins with; empty if calls have no mark.
        read: Reads a block from its mark on.
        syntax: The syntax that required calls keep to; None if it is not known.
        opens_answer: Whether a block may begin the answer without a mark.
        sure: How a block begins that can be no text, for marks that are words; None if the mark is enough.
        addressed: Whether a text has a header of the notation too, so that it is read without tools as well.
        other_names: Names that a call cannot have, besides those that `can_hold` tells.
    """

    name: str
    starts: tuple[str, ...]
    read: ReadCalls
    syntax: CallSyntax | None = None
    opens_answer: bool = False
    sure: re.Pattern[str] | None = None
    addressed: bool = False
    other_names: re.Pattern[str] | None = None

    def can_hold(self, name: str) -> bool:
        """Whether a call can name this tool: its name has no line end, bracket, quote or backslash."""
        if not name or name != name.strip() or _NAME.fullmatch(name) is None:
            return False
        return self.other_names is None or self.other_names.search(name) is None


def read_end(reader: Reader, *marks: str, before: tuple[str, ...] = ()) -> Steps[None]:
    """
    Take white space and the mark that ends a call.

    Only the model itself may leave the mark out: at the end of the answer, or before a mark that begins something else.

    Raises:
        Malformed: If something else comes.
    """
    yield from reader.space()
    if (yield from reader.maybe(*marks)):
        return
    if reader.exhausted:
        if not reader.by_model:
            raise Cut("the end of a call is missing")
        return
    if not (before and (yield from reader.follows(*before))):
        raise Malformed("the end of a call is missing")


def read_arguments(reader: Reader, calls: CallWriter) -> Steps[None]:
    """
    Read the JSON object of a call's arguments and pass it on as it comes.

    Raises:
        Malformed: If it is no JSON object.
    """
    yield from reader.space()
    if (yield from reader.peek()) != "{":
        raise Malformed("the arguments are no object")
    yield from read_json(reader, calls.write)


FENCE = "```"
"""Stands before and behind a block of code."""


def read_fenced_call(reader: Reader, calls: CallWriter) -> Steps[None]:
    """
    Read a name, a line end, and the arguments as a block of code. The call has begun then, and the caller ends it.

    Raises:
        Malformed: If the arguments are no JSON object in a fence.
    """
    calls.begin((yield from read_until(reader, "\n")).strip())
    yield from reader.literal(FENCE)
    yield from reader.maybe("json")
    yield from read_arguments(reader, calls)
    yield from reader.space()
    yield from reader.literal(FENCE)


def read_block(
    reader: Reader, calls: CallWriter, block: tuple[str, str], call: tuple[str, str], read: ReadCalls
) -> Steps[None]:
    """
    Read a block of calls, each between marks of its own.

    Args:
        reader: At the mark of the block.
        calls: Takes the calls.
        block: The marks around the block.
        call: The marks around a call.
        read: Reads a call between its marks.

    Raises:
        Malformed: If it is none.
    """
    yield from reader.literal(block[0])
    yield from reader.space()
    yield from reader.literal(call[0])
    while True:
        yield from read(reader, calls)
        yield from read_end(reader, call[1], before=(block[1], call[0]))
        calls.end()
        yield from reader.space()
        if not (yield from reader.maybe(call[0])):
            break
    yield from read_end(reader, block[1])


@dataclass(frozen=True, slots=True)
class JsonKeys:
    """
    The keys of a call that is a JSON object.

    Attributes:
        name, arguments, id: Keys that mean the same, each.
        other: Keys that say nothing about the call.
        id_last: Whether the id comes after the arguments, so that nothing can be passed on before it.
    """

    name: tuple[str, ...] = ("name",)
    arguments: tuple[str, ...] = ("arguments", "parameters")
    id: tuple[str, ...] = ("id",)
    other: tuple[str, ...] = ("type",)
    id_last: bool = False


KEYS = JsonKeys()


def read_json_calls(reader: Reader, calls: CallWriter, keys: JsonKeys = KEYS) -> Steps[None]:
    """
    Read a call that is a JSON object, or a list of such calls.

    Raises:
        Malformed: If it is neither.
    """
    yield from reader.space()
    if not (yield from reader.maybe("[")):
        yield from read_json_call(reader, calls, keys)
        return
    while True:
        yield from read_json_call(reader, calls, keys)
        calls.end()
        yield from reader.space()
        if not (yield from reader.maybe(",")):
            yield from reader.literal("]")
            return


def read_json_call(reader: Reader, calls: CallWriter, keys: JsonKeys = KEYS) -> Steps[None]:
    """
    Read a call that is one JSON object. It has begun then, and the caller ends it.

    The arguments are passed on as they come if the name stands before them. They may be a text that is a JSON object.

    Raises:
        Malformed: If it is none, or has other keys.
    """
    fields: dict[str, str] = {}
    begun = False
    yield from reader.space()
    yield from reader.literal("{")
    while True:
        key = yield from _read_key(reader, fields, keys)
        if key == "arguments" and "name" in fields and not keys.id_last and (yield from reader.peek()) == "{":
            calls.begin(fields["name"], fields.get("id", ""))
            yield from read_json(reader, calls.write)
            fields[key], begun = "", True
        else:
            fields[key] = yield from _read_text(reader)
            if key in ("name", "id"):
                fields[key] = _string(fields[key])
        yield from reader.space()
        if not (yield from reader.maybe(",")):
            break
    yield from reader.literal("}")
    if "name" not in fields:
        raise Malformed("a call has a name")
    if not begun:
        calls.begin(fields["name"], fields.get("id", ""))
        calls.write(_object(fields.get("arguments", "{}")))


def _read_key(reader: Reader, seen: dict[str, str], keys: JsonKeys) -> Steps[str]:
    """Return what a key of a call means, which must be new; the value comes next."""
    yield from reader.space()
    pieces: list[str] = []
    yield from read_string(reader, pieces.append)
    written = _string("".join(pieces))
    meanings = (("name", keys.name), ("arguments", keys.arguments), ("id", keys.id), ("other", keys.other))
    key = next((meaning for meaning, names in meanings if written in names), None)
    if key is None or key in seen:
        raise Malformed("this is no key of a call")
    yield from reader.space()
    yield from reader.literal(":")
    yield from reader.space()
    return key


def _read_text(reader: Reader) -> Steps[str]:
    pieces: list[str] = []
    yield from read_json(reader, pieces.append)
    return "".join(pieces)


def _string(json_text: str) -> str:
    """Return the string of a JSON text."""

    value = json.loads(json_text)
    if not isinstance(value, str):
        raise Malformed("this is no string")
    return value


def _object(json_text: str) -> str:
    """Return the JSON of an object, which may be written as a string, or as null for none."""
    if json_text.startswith('"'):
        inner = Reader()
        inner.add(_string(json_text))
        inner.end(by_model=True)
        pieces: list[str] = []
        drive(read_json(inner, pieces.append))
        if inner.rest().strip():
            raise Malformed("the arguments are no object")
        json_text = "".join(pieces)
    if json_text == "null":
        return "{}"
    if not json_text.startswith("{"):
        raise Malformed("the arguments are no object")
    return json_text


_NAME = re.compile(r"[^\r\n<>{}\[\]()\"\\]*")


def read_name(reader: Reader) -> Steps[str]:
    """Return the name of a tool, which ends before a line end, a bracket or a quote."""
    pieces: list[str] = []
    yield from reader.run(_NAME, pieces.append)
    return "".join(pieces).strip()
