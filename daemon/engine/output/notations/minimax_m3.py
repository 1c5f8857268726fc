"""
Tool calls of MiniMax M3: a block of invocations, with arguments as elements within each other.

Each tag follows the mark `]<]minimax[>[`. An element is named like its argument. A member of an object is an element of
its name, and an item of a list is an element `item`:

`M<tool_call>\\nM<invoke name="NAME">M<KEY>VALUEM</KEY>M</invoke>\\nM</tool_call>`, where M is the mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from daemon.engine.output.argument_types import ArgumentType
from daemon.engine.output.json_reader import MOST_DEPTH, quoted
from daemon.engine.output.notations.notation import Notation, read_end
from daemon.engine.output.notations.structured import Style, Values, optional
from daemon.engine.output.notations.syntax import (
    CallSyntax,
    Choice,
    Free,
    Later,
    Maybe,
    Part,
    Sequence,
    Several,
    Text,
    arguments,
    refuse_name,
)
from daemon.engine.output.reader import Cut, Malformed, Reader, Steps, read_until
from daemon.engine.output.tool_calls import CallWriter, NamedArguments, Tool

_MARK = "]<]minimax[>["
_START, _END = f"{_MARK}<tool_call>", f"{_MARK}</tool_call>"
_INVOKE, _INVOKE_END = f"{_MARK}<invoke", f"{_MARK}</invoke>"
_NAME = re.compile(r"""\s*name\s*=\s*"([^"]*)"\s*""")
_MEMBER = re.compile(r"[^<>/\n]*")
"""A name that an element can have."""


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(_START)
    yield from reader.space()
    yield from reader.literal(_INVOKE)
    while True:
        yield from _read_invocation(reader, calls)
        calls.end()
        yield from reader.space()
        if not (yield from reader.maybe(_INVOKE)):
            break
    yield from read_end(reader, _END, before=(_START,))


def _read_invocation(reader: Reader, calls: CallWriter) -> Steps[None]:
    match = _NAME.fullmatch((yield from read_until(reader, ">")))
    if match is None:
        raise Malformed("an invocation has a name")
    writer = NamedArguments(calls.begin(match[1]), calls)
    yield from reader.space()
    while not (yield from reader.maybe(_INVOKE_END)):
        yield from reader.literal(f"{_MARK}<")
        name = yield from read_until(reader, ">")
        writer.value((yield from _read_element(reader, name, writer.name(name), 1)))
        yield from reader.space()
    writer.end()


def _read_element(reader: Reader, name: str, kind: ArgumentType, depth: int) -> Steps[str]:
    """Return the JSON of an element; its first tag is taken."""
    if depth > MOST_DEPTH:
        raise Malformed("elements are too deep within each other")
    if (yield from reader.maybe(_MARK)):
        yield from reader.literal("<")
        if (yield from reader.maybe(f"/{name}>")):
            return kind.json_of("") if kind.kinds & {"string"} else _empty(kind)
        value = yield from _read_members(reader, name, kind, depth)
    else:
        pieces: list[str] = []
        yield from reader.until((f"{_MARK}<",), pieces.append)
        if not (yield from reader.maybe(f"/{name}>")):
            raise Cut("an element does not end")
        value = kind.json_of("".join(pieces))
    return value


def _empty(kind: ArgumentType) -> str:
    return "[]" if "array" in kind.kinds and "object" not in kind.kinds else "{}"


def _read_members(reader: Reader, name: str, kind: ArgumentType, depth: int) -> Steps[str]:
    """Return the JSON of an element that has elements; the mark of the first one is taken, and its `<`."""
    names: list[str] = []
    values: list[str] = []
    while True:
        member = yield from read_until(reader, ">")
        names.append(member)
        of = kind.item() if member == "item" and "array" in kind.kinds else kind.member(member)
        values.append((yield from _read_element(reader, member, of, depth + 1)))
        yield from reader.space()
        yield from reader.literal(f"{_MARK}<")
        if (yield from reader.maybe(f"/{name}>")):
            break
    if "array" in kind.kinds and all(member == "item" for member in names):
        return f"[{', '.join(values)}]"
    if len(set(names)) < len(names):
        raise Malformed("a member comes twice")
    pairs = [f'"{quoted(member)}": {value}' for member, value in zip(names, values, strict=True)]
    return f"{{{', '.join(pairs)}}}"


def _call(tool: Tool) -> Part:
    root = arguments(tool)
    inner = Values(_STYLE, root).of(root)
    return Sequence((Text(f'{_INVOKE} name="{tool.name}">'), inner, Text(f"{_INVOKE_END}\n")))


_ANY = Free("")
"""Any text. It ends with the tag of its element, which `_element` knows."""


def _text(only: str | None) -> Part:
    return _ANY if only is None else Text(only)


def _choices(part: Part) -> tuple[Part, ...]:
    """Return what a part may be, each alone if one of them is any text."""
    inner = part.part if isinstance(part, Later) else part
    choices = inner.parts if isinstance(inner, Choice) else (inner,)
    return choices if _ANY in choices else (part,)


def _element(name: str, part: Part) -> Part:
    refuse_name(name, _MEMBER)
    close = f"{_MARK}</{name}>"
    ended = [Free(close) if inner is _ANY else Sequence((inner, Text(close))) for inner in _choices(part)]
    return Sequence((Text(f"{_MARK}<{name}>"), Choice(tuple(ended))))


def _elements(parts: Mapping[str, Part], required: frozenset[str]) -> Part:
    return Sequence(tuple(optional({name: _element(name, part) for name, part in parts.items()}, required)))


_STYLE = Style(_text, lambda item: Maybe(Several(_element("item", item), "")), _elements)
MINIMAX_M3 = Notation("MiniMax M3", (_START,), _read, CallSyntax(_call, f"{_START}\n", _END, between=""))
