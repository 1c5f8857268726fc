"""The syntax of calls as data, from which grammars for constrained sampling are made. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from daemon.engine.output.argument_types import ArgumentType, listed_values, type_names, type_of
from daemon.engine.output.json_schema import within
from daemon.engine.output.tool_calls import Tool


class Unenforceable(Exception):  # noqa: N818 - a schema is no error
    """A notation cannot keep to a schema. The text names the keyword or the part."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Exactly this text."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Json:
    """A JSON value of a schema."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Free:
    """Any text up to a mark, which ends it at its first occurrence, and the mark."""

    end: str


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """Text that a regular expression matches as a whole, in the syntax of Rust's regex crate."""

    expression: str


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """Parts one after the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One of several parts."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Maybe:
    """A part or nothing."""

    part: Part


@dataclass(frozen=True, slots=True, eq=False)
class Several:
    """A part once or more, with a text between two of them."""

    part: Part
    between: str


@dataclass(slots=True, eq=False)
class Later:
    """A part that is known later, for syntax that contains itself."""

    part: Part = field(default_factory=lambda: Text(""))


Part: TypeAlias = Text | Json | Free | Pattern | Sequence | Choice | Maybe | Several | Later


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """
    The syntax of calls.

    A block is `start`, one call or several, `end`. An answer is one block or several.

    Attributes:
        call: Returns the syntax of a call of a tool within its block; raises Unenforceable.
        start: Text before the first call of a block; it begins with the mark of the notation.
        end: Text after the last call of a block.
        between: Text between two calls of a block; None if a block has one call.
        apart: Text between two blocks; None if an answer has one block.
        opening: Whether the start is the header of a message. If not, line ends may come before the first block.
    """

    call: Callable[[Tool], Part]
    start: str = ""
    end: str = ""
    between: str | None = None
    apart: str | None = None
    opening: bool = False


def arguments(tool: Tool) -> dict[str, Any]:
    """
    Return the schema of a tool's arguments, which allows objects alone.

    Raises:
        Unenforceable: If the tool's schema allows no object.
    """
    if not tool.parameters:
        return {"type": "object", "additionalProperties": False}
    kind = tool.parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise Unenforceable("must allow an object, because the arguments of a call are a JSON object")
    return {**tool.parameters, "type": "object"}


def json_call(before: str, named: str, after: str) -> Callable[[Tool], Part]:
    """Return the syntax of a call that has its name between two texts, and JSON arguments."""

    def call(tool: Tool) -> Part:
        return Sequence((Text(before + tool.name + named), Json(arguments(tool)), Text(after)))

    return call


MADE_OF = ("$ref", "anyOf", "oneOf", "allOf")
"""Keywords that make a schema of others."""
MEMBER_LIMITS = (
    "patternProperties", "minProperties", "maxProperties", "propertyNames", "dependentRequired", "dependentSchemas",
    "dependencies",
)  # fmt: skip
"""Keywords by which members of an object have any names, are counted, or depend on each other."""
_OF_A_ROOT = (*MADE_OF, "not", "if", "const", "enum", *MEMBER_LIMITS)
"""Keywords of an object with members that are not one list, or that depend on each other."""


def members(schema: Mapping[str, Any], of: Callable[[str | None, Any], Part], between: str = "") -> list[Part]:
    """
    Return the syntax of each member of an object, in the order of its schema; those that may be missing are Maybe.

    Args:
        schema: The schema of the object, which is its own root.
        of: Returns the syntax of a member, given its name and its schema. Without a name it has any.
        between: The text between two members of any names.

    Raises:
        Unenforceable: If the schema is made of others, so that its members are not one list.
    """
    for word in _OF_A_ROOT:
        if word in schema:
            raise Unenforceable(f"has `{word}` at its root, which this model's notation of calls cannot keep to")
    properties, required = described(schema)
    others = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
    if not properties and others is not False:
        return [Maybe(Several(of(None, others if isinstance(others, dict) else {}), between))]
    return [of(name, part) if name in required else Maybe(of(name, part)) for name, part in properties.items()]


def member_name(key: str | None, fits: re.Pattern[str] | None = None, any_name: str = r"[^<>\s]{1,100}") -> Part:
    """
    Return the syntax of a member's name.

    Args:
        key: The name; None for any.
        fits: What a name of the notation can be; None for any text.
        any_name: Any name, as a regular expression.

    Raises:
        Unenforceable: If the notation cannot hold the name.
    """
    if key is None:
        return Pattern(any_name)
    if fits is not None:
        refuse_name(key, fits)
    return Text(key)


def refuse_name(name: str, fits: re.Pattern[str]) -> None:
    """
    Check that a notation can hold the name of a member.

    Raises:
        Unenforceable: If it cannot.
    """
    if not fits.fullmatch(name):
        raise Unenforceable(f"has the property {name!r}, a name that this model's notation of calls cannot hold")


def described(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], frozenset[str]]:
    """
    Return the members that the schema of an object describes, and the names of those that it requires.

    Raises:
        Unenforceable: If one of both is malformed, or if a member is required and not described.
    """
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if not isinstance(properties, dict):
        raise Unenforceable("has `properties` that are no object")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise Unenforceable("has `required` that is no list of names")
    if not properties.keys() >= set(required):
        raise Unenforceable("requires a property that it does not describe")
    return properties, frozenset(required)


def raw_value(schema: Any, root: Mapping[str, Any], end: str) -> Part:
    """
    Return the syntax of a value that is written without quotes if it is a string, and its end mark.

    Raises:
        Unenforceable: If the schema restricts a string in a way that only JSON strings can be kept to.
    """
    kind = type_of([schema], root)
    if "string" not in kind.kinds:
        return Sequence((Choice((Json(within(schema, root)), *python_words(kind))), Text(end)))
    if kind.strings is None:
        refuse_limits(kind)
        return Free(end)  # the text of any other value is a text as well
    listed = [Text(text + end) for text in sorted(kind.strings)]
    others = [*no_strings(kind), *python_words(kind)]
    return Choice((*listed, *(Sequence((value, Text(end))) for value in others)))


def python_words(kind: ArgumentType) -> list[Part]:
    """Return the syntax of booleans and of null as Python writes them: many templates do."""
    words = ((True, "True"), (False, "False"), (None, "None"))
    free = kind.kinds.issuperset(_NO_STRINGS)
    return [Text(word) for value, word in words if free or any(_may_be(part, value) for part in kind.parts)]


def _may_be(part: Mapping[str, Any], value: bool | None) -> bool:
    """Return whether a part of a schema names a boolean, or null, among its values or by its type."""
    if value is None and part.get("nullable") is True:
        return True
    listed = listed_values(part)
    if listed is not None:
        return any(one is value for one in listed)
    return ("null" if value is None else "boolean") in type_names(part)


_NO_STRINGS = ("number", "boolean", "null", "object", "array")


def no_strings(kind: ArgumentType) -> list[Part]:
    """Return the syntax of the values that are no strings, as JSON."""
    found: list[Part] = []
    for part in kind.parts or ({},):
        values = listed_values(part)
        types: list[str] = []
        if values is not None:
            found += [Text(json.dumps(value, ensure_ascii=False)) for value in values if not isinstance(value, str)]
        else:
            types = [name for name in type_names(part) or _NO_STRINGS if name != "string"]
        if part.get("nullable") is True and "null" not in types:
            types.append("null")
        if types:
            rest = {word: value for word, value in part.items() if word not in ("const", "enum", "nullable")}
            found.append(Json(within({**rest, "type": types}, kind.root)))
    return found


def refuse_limits(kind: ArgumentType) -> None:
    """
    Check that a string is not restricted.

    Raises:
        Unenforceable: If it is.
    """
    refuse_words(kind, "pattern", "minLength", "maxLength", "format", "not", "if")


def refuse_words(kind: ArgumentType, *words: str) -> None:
    """
    Check that a schema has none of some keywords.

    Raises:
        Unenforceable: If it has one.
    """
    for word in words:
        if any(word in part for part in kind.parts):
            raise Unenforceable(f"has `{word}`, which this model's notation of calls cannot keep to")


def listed(parts: list[Part], between: str) -> Part:
    """
    Return the syntax of a list of parts, of which those that are Maybe may be missing, with a text between two.

    Each rest of the list is made once for a list that has begun and once for one that has not, so the size is linear.
    """
    begun: Part = Text("")
    fresh: Part = Text("")
    for part in reversed(parts):
        inner = part.part if isinstance(part, Maybe) else part
        taken, first = Sequence((Text(between), inner, begun)), Sequence((inner, begun))
        missing = isinstance(part, Maybe)
        begun, fresh = (Choice((taken, begun)), Choice((first, fresh))) if missing else (taken, first)
    return fresh
