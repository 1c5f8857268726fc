"""The syntax of values in notations that write lists and objects in their own way, made from a JSON schema. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from daemon.engine.output.argument_types import ArgumentType, listed_values, type_names, type_of
from daemon.engine.output.json_schema import referred, within
from daemon.engine.output.notations.syntax import (
    MADE_OF,
    MEMBER_LIMITS,
    Choice,
    Json,
    Later,
    Maybe,
    Part,
    Text,
    Unenforceable,
    described,
    refuse_limits,
    refuse_words,
)

_SIZES = ("minItems", "maxItems", "uniqueItems", "contains", "prefixItems", "additionalItems", "unevaluatedItems")
_LIMITS = frozenset({
    "properties", "required", "additionalProperties", "items", "enum", "const", "pattern", "minLength", "maxLength",
    "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
})  # fmt: skip
"""Keywords that limit a value further, where they stand beside one of `MADE_OF`."""


@dataclass(frozen=True, slots=True)
class Style:
    """
    How a notation writes values.

    Attributes:
        text: Returns the syntax of any string, for None, or of one string.
        items: Returns the syntax of a list of any length, given that of an item.
        members: Returns the syntax of an object, given its members and which of them it must have.
        mapping: Returns the syntax of an object with members of any names, given that of their values; None if the
            notation cannot have one.
    """

    text: Callable[[str | None], Part]
    items: Callable[[Part], Part]
    members: Callable[[Mapping[str, Part], frozenset[str]], Part]
    mapping: Callable[[Part], Part] | None = None


class Values:
    """
    Makes the syntax of values of one schema.

    Args:
        style: How the notation writes them.
        root: The whole schema.
    """

    def __init__(self, style: Style, root: Mapping[str, Any]) -> None:
        self._style = style
        self._root = root
        self._known: dict[tuple[int, ...], Later] = {}

    def of(self, schema: Any) -> Part:
        """
        Return the syntax of a value of a schema.

        Raises:
            Unenforceable: If the notation cannot keep to the schema.
        """
        self._refuse_both(schema)
        return self._value(type_of([schema], self._root))

    def _refuse_both(self, schema: Any) -> None:
        """Check that a value need not fit several schemas at a time: its type is what fits any of them."""
        left, seen = [schema], set[int]()
        while left:
            part = left.pop()
            if not isinstance(part, dict) or id(part) in seen:
                continue
            seen.add(id(part))
            words = [word for word in MADE_OF if isinstance(part.get(word), str | list)]
            if words[1:] or (words and part.keys() & _LIMITS) or (words == ["allOf"] and len(part["allOf"]) > 1):
                raise Unenforceable(f"has `{words[0]}` with more limits, which this model's notation cannot keep to")
            for word in words:
                left += part[word] if isinstance(part[word], list) else [referred(part[word], self._root)]

    def _value(self, kind: ArgumentType) -> Part:
        key = tuple(map(id, kind.parts))
        if key in self._known:
            return self._known[key]
        refuse_words(kind, "not", "if")
        if any(isinstance(value, list | dict) for part in kind.parts for value in listed_values(part) or ()):
            raise Unenforceable(
                "lists an object or a list among its values, which this notation of calls cannot keep to"
            )
        self._known[key] = later = Later()
        choices = [*self._strings(kind), *self._scalars(kind), *self._lists(kind), *self._objects(kind)]
        if not choices:
            raise Unenforceable("has a part that allows nothing")
        later.part = choices[0] if len(choices) == 1 else Choice(tuple(choices))
        return later

    def _strings(self, kind: ArgumentType) -> list[Part]:
        if "string" not in kind.kinds:
            return []
        if kind.strings is not None:
            return [self._style.text(text) for text in sorted(kind.strings)]
        refuse_limits(kind)
        return [self._style.text(None)]

    def _scalars(self, kind: ArgumentType) -> list[Part]:
        scalars = kind.kinds & {"number", "boolean", "null"}
        if not scalars:
            return []
        if not kind.parts or any(not _states_type(part) for part in kind.parts):
            return [Json({"type": sorted(scalars)})]
        found: list[Part] = []
        for part in kind.parts:
            listed = listed_values(part)
            if listed is not None:
                found += [Text(json.dumps(value)) for value in listed if isinstance(value, int | float | None)]
                continue
            types = [name for name in type_names(part) if name in ("number", "integer", "boolean", "null")]
            types += ["null"] if part.get("nullable") is True and "null" not in types else []
            if types:
                found.append(Json(within({**part, "type": types}, self._root)))
        return found

    def _lists(self, kind: ArgumentType) -> list[Part]:
        if "array" not in kind.kinds:
            return []
        refuse_words(kind, *_SIZES)
        for part in kind.parts:
            if isinstance(part.get("items"), list):
                raise Unenforceable("has a list of `items`, which this model's notation of calls cannot keep to")
            self._refuse_both(part.get("items"))
        return [self._style.items(self._value(kind.item()))]

    def _objects(self, kind: ArgumentType) -> list[Part]:
        if "object" not in kind.kinds:
            return []
        refuse_words(kind, *MEMBER_LIMITS)
        parts = [part for part in kind.parts if part.get("properties")]
        return [self._object(part) for part in parts] if parts else [self._mapping(kind)]

    def _object(self, part: Mapping[str, Any]) -> Part:
        properties, required = described(part)
        return self._style.members({name: self.of(schema) for name, schema in properties.items()}, required)

    def _mapping(self, kind: ArgumentType) -> Part:
        """Return the syntax of an object without properties."""
        others = [part.get("additionalProperties", part.get("unevaluatedProperties")) for part in kind.parts]
        if any(schema is False for schema in others):
            return self._style.members({}, frozenset())
        typed = [schema for schema in others if isinstance(schema, dict) and schema]
        if self._style.mapping is None or len(typed) > 1 or any(part.get("required") for part in kind.parts):
            raise Unenforceable("has an object without properties, which this model's notation cannot keep to")
        return self._style.mapping(self.of(typed[0]) if typed else self._value(type_of([], self._root)))


def optional(parts: Mapping[str, Part], required: frozenset[str]) -> list[Part]:
    """Return the members of an object in order; those that may be missing are Maybe."""
    return [part if name in required else Maybe(part) for name, part in parts.items()]


def _states_type(part: Mapping[str, Any]) -> bool:
    return any(word in part for word in ("type", "enum", "const"))
