"""
Tool calls of Gemma 4 and FunctionGemma: `call:NAME{KEY:VALUE,…}` between two marks, with quotes of their own.

A string stands between two marks that are its quotes, and has no escapes. Keys are bare, and may hold spaces; templates
sort them. Gemma 4 sometimes leaves out the first mark of a call that begins its answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from daemon.engine.output.argument_types import ArgumentType, type_of
from daemon.engine.output.json_reader import MOST_DEPTH, quoted
from daemon.engine.output.notations.notation import Notation, read_end
from daemon.engine.output.notations.structured import Style, Values, optional
from daemon.engine.output.notations.syntax import (
    CallSyntax,
    Free,
    Maybe,
    Part,
    Pattern,
    Sequence,
    Several,
    Text,
    arguments,
    listed,
    refuse_name,
)
from daemon.engine.output.reader import Malformed, Reader, Sink, Steps, read_until, read_value
from daemon.engine.output.tool_calls import CallWriter, Tool

_NAME = re.compile(r"[^{}<>\r\n]*")
_KEY = re.compile(r"[^:{}\[\],<>\r\n]*")
_BARE = re.compile(r"[^,{}\[\]<>\r\n]*")


def _notation(name: str, start: str, end: str, quote: str, *, bare: bool = False) -> Notation:
    """Return the notation with these marks; `bare` if a call that begins the answer may lack the first one."""

    def read(reader: Reader, calls: CallWriter) -> Steps[None]:
        yield from reader.maybe(start)  # it is there, or may be left out
        yield from reader.space()
        while True:
            yield from reader.literal("call:")
            pieces: list[str] = []
            yield from reader.run(_NAME, pieces.append)
            tool = calls.begin("".join(pieces).strip())
            yield from _read_members(reader, calls.write, quote, type_of([tool.parameters], tool.parameters), 0)
            if not (yield from reader.follows("call:")):
                break
            calls.end()
            yield from reader.space()
        yield from read_end(reader, end, before=(start,))
        calls.end()

    def call(tool: Tool) -> Part:
        root = arguments(tool)
        return Sequence((Text(f"call:{tool.name}"), Values(_style(quote), root).of(root)))

    return Notation(name, (start,), read, CallSyntax(call, start, end, apart=""), opens_answer=bare)


def _read_value(reader: Reader, sink: Sink, quote: str, kind: ArgumentType, depth: int) -> Steps[None]:
    yield from reader.space()
    if depth > MOST_DEPTH:
        raise Malformed("values are too deep within each other")
    if (yield from reader.maybe(quote)):
        sink('"')
        yield from read_value(reader, lambda text: sink(quoted(text)), (quote,), (",", "}", "]", ":"))
        sink('"')
        return
    ahead = yield from reader.peek()
    if ahead == "{":
        yield from _read_members(reader, sink, quote, kind, depth)
    elif ahead == "[":
        yield from _read_items(reader, sink, quote, kind, depth)
    else:
        pieces: list[str] = []
        yield from reader.run(_BARE, pieces.append)
        sink(kind.json_of("".join(pieces).strip()))


def _read_members(reader: Reader, sink: Sink, quote: str, kind: ArgumentType, depth: int) -> Steps[None]:
    yield from reader.literal("{")
    sink("{")
    names: set[str] = set()
    while not (yield from _closed(reader, "}")):
        name = yield from _read_key(reader, quote)
        if name in names:
            raise Malformed("a key comes twice")
        sink(f'{", " if names else ""}"{quoted(name)}": ')
        names.add(name)
        yield from _read_value(reader, sink, quote, kind.member(name), depth + 1)
        yield from reader.space()
        if not (yield from reader.maybe(",")):
            yield from reader.literal("}")
            break
    sink("}")


def _read_items(reader: Reader, sink: Sink, quote: str, kind: ArgumentType, depth: int) -> Steps[None]:
    yield from reader.literal("[")
    sink("[")
    first = True
    while not (yield from _closed(reader, "]")):
        sink("" if first else ", ")
        first = False
        yield from _read_value(reader, sink, quote, kind.item(), depth + 1)
        yield from reader.space()
        if not (yield from reader.maybe(",")):
            yield from reader.literal("]")
            break
    sink("]")


def _closed(reader: Reader, mark: str) -> Steps[bool]:
    yield from reader.space()
    return bool((yield from reader.maybe(mark)))


def _read_key(reader: Reader, quote: str) -> Steps[str]:
    if (yield from reader.maybe(quote)):
        name = yield from read_until(reader, quote)
        yield from reader.space()
    else:
        pieces: list[str] = []
        yield from reader.run(_KEY, pieces.append)
        name = "".join(pieces).strip()
    if not name:
        raise Malformed("a value has a key")
    yield from reader.literal(":")
    return name


def _style(quote: str) -> Style:
    """Return how values are written."""
    string = Sequence((Text(quote), Free(quote)))

    def text(only: str | None) -> Part:
        return string if only is None else Text(f"{quote}{only}{quote}")

    def items(item: Part) -> Part:
        return Sequence((Text("["), Maybe(Several(item, ",")), Text("]")))

    def of_members(parts: Mapping[str, Part], required: frozenset[str]) -> Part:
        for name in parts:
            refuse_name(name, _KEY)
        # As the template has them, in what a model reads of its tools, and in its calls.
        ordered = sorted(parts.items(), key=lambda pair: pair[0].lower())
        pairs = {name: Sequence((Text(f"{name}:"), part)) for name, part in ordered}
        return Sequence((Text("{"), listed(optional(pairs, required), ","), Text("}")))

    def mapping(value: Part) -> Part:
        pair = Sequence((Pattern("[A-Za-z_][A-Za-z0-9_ ]{0,63}:"), value))
        return Sequence((Text("{"), Maybe(Several(pair, ",")), Text("}")))

    return Style(text, items, of_members, mapping)


GEMMA_4 = _notation("Gemma 4", "<|tool_call>", "<tool_call|>", '<|"|>', bare=True)
FUNCTION_GEMMA = _notation("FunctionGemma", "<start_function_call>", "<end_function_call>", "<escape>")
