"""
The types that a tool's JSON schema allows for its arguments, and the value that a written text stands for. Pure.

Many notations write a string without quotes, so `5` is a number or a text, and only the schema tells which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.engine.output.json_reader import read_json
from daemon.engine.output.json_schema import referred
from daemon.engine.output.python_reader import read_python
from daemon.engine.output.reader import Malformed, Reader, Sink, Steps, drive

_ALL = frozenset({"string", "number", "boolean", "null", "object", "array"})
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_MOST_SCHEMAS = 500
"""Parts of a schema that are looked at for one argument; a recursive schema has no end."""


@dataclass(frozen=True, slots=True)
class ArgumentType:
    """
    What an argument may be.

    Attributes:
        kinds: Its JSON types, integers as "number"; all if the schema does not say.
        strings: The only strings that it may be; None if it may be any.
        parts: The parts of the schema that describe it.
        root: The whole schema, which references name parts of.
        whole: Whether its numbers are integers.
    """

    kinds: frozenset[str]
    strings: frozenset[str] | None = None
    parts: tuple[Mapping[str, Any], ...] = ()
    root: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False

    @property
    def only_text(self) -> bool:
        """Whether any text is this string, so that it can be passed on as it is written."""
        return self.kinds == {"string"}

    def json_of(self, text: str) -> str:
        """
        Return the JSON of the value that a text stands for.

        The text is a value of another type than string if the schema allows that type and the text is such a value. It
        is a string in all other cases, also where the schema allows none: an invented value would be worse.
        """
        if self.strings is not None and text in self.strings:
            return json.dumps(text, ensure_ascii=False)
        value = _value(text.strip())
        if value is not None and _kind(value) in self.kinds - {"string"} and not self._is_rather_text(value):
            return value
        return json.dumps(text, ensure_ascii=False)

    def _is_rather_text(self, value: str) -> bool:
        """Return whether a value is a number, such as the version 3.10, where only an integer or a text is allowed."""
        number = self.whole and _kind(value) == "number" and _INTEGER.fullmatch(value) is None
        return number and "string" in self.kinds

    def member(self, name: str) -> ArgumentType:
        """
        Return the type of a member of this object.

        A member that the schema does not know is text if the schema knows others.
        """
        known = [part["properties"] for part in self.parts if isinstance(part.get("properties"), dict)]
        schemas = [members[name] for members in known if name in members]
        if not schemas:
            schemas = [schema for part in self.parts for schema in _others(part)]
        if schemas:
            return type_of(schemas, self.root)
        return _TEXT if any(known) else _ANY

    def item(self) -> ArgumentType:
        """Return the type of an item of this list."""
        return type_of([part["items"] for part in self.parts if isinstance(part.get("items"), dict)], self.root)


_ANY = ArgumentType(_ALL)
_TEXT = ArgumentType(frozenset({"string"}))


def _others(part: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the schemas of members that a schema does not name."""
    if isinstance(part.get("additionalProperties"), dict):
        yield part["additionalProperties"]
    if isinstance(part.get("patternProperties"), dict):
        yield from part["patternProperties"].values()


def type_of(schemas: Sequence[Any], root: Mapping[str, Any]) -> ArgumentType:
    """
    Return what any of some schemas allows.

    Args:
        schemas: The schemas; none allow anything.
        root: The whole schema that they are parts of.
    """
    parts = tuple(part for schema in schemas for part in _alternatives(schema, root))
    kinds: set[str] = set()
    strings: set[str] = set()
    any_string = fractions = False
    for part in parts:
        values = listed_values(part)
        if values is not None:
            kinds |= {_kind(json.dumps(value)) for value in values}
            strings |= {value for value in values if isinstance(value, str)}
            fractions |= any(isinstance(value, float) for value in values)
        else:
            types = _types(part)
            kinds |= types or _implied(part)
            any_string |= "string" in types
            fractions |= "number" in type_names(part)
        if part.get("nullable") is True:
            kinds.add("null")
    if not kinds & _ALL:
        return ArgumentType(_ALL, None, parts, root)
    listed = frozenset(strings) if strings and not any_string else None
    return ArgumentType(frozenset(kinds & _ALL), listed, parts, root, whole=not fractions)


def type_names(part: Mapping[str, Any]) -> list[str]:
    """Return the types that a schema names, as it names them; none if it names none."""
    named = part.get("type")
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return [name for name in names if isinstance(name, str)]


def _types(part: Mapping[str, Any]) -> set[str]:
    """Return the types that a schema names."""
    return {"number" if name == "integer" else name for name in type_names(part)}


def listed_values(part: Mapping[str, Any]) -> list[Any] | None:
    """Return the values that a schema lists, if it does."""
    if "const" in part:
        return [part["const"]]
    return part["enum"] if isinstance(part.get("enum"), list) else None


def _implied(part: Mapping[str, Any]) -> set[str]:
    """Return the types of a schema that names none but has keywords of one."""
    implied = {"object": ("properties", "additionalProperties", "required"), "array": ("items", "prefixItems")}
    return {kind for kind, words in implied.items() if any(word in part for word in words)}


def _alternatives(schema: Any, root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a schema and what it refers to or offers, without those parts that only refer or offer."""
    left, seen = [schema], 0
    while left and seen < _MOST_SCHEMAS:
        part = left.pop(0)
        seen += 1
        if not isinstance(part, dict):
            continue
        inner = [referred(part["$ref"], root)] if isinstance(part.get("$ref"), str) else []
        for word in ("anyOf", "oneOf", "allOf"):
            inner += part[word] if isinstance(part.get(word), list) else []
        left += inner
        if not inner or any(word in part for word in ("type", "enum", "const", "properties", "nullable")):
            yield part


def _value(text: str) -> str | None:
    """Return the JSON of a text that is a JSON value or a Python literal, no string; None if it is neither."""
    for read in (read_json, read_python):
        pieces: list[str] = []
        reader = Reader()
        reader.add(text)
        reader.end(by_model=True)
        try:
            drive(_whole(reader, read, pieces.append))
        except Malformed:
            continue
        return "".join(pieces)
    return None


def _whole(reader: Reader, read: Any, sink: Sink) -> Steps[None]:
    yield from read(reader, sink)
    if (yield from reader.peek()):
        raise Malformed("something follows the value")


def _kind(value: str) -> str:
    """Return the JSON type of a value's JSON."""
    kinds = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}
    return kinds.get(value[:1], "number")
