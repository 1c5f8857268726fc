"""The syntax of values in notations that write lists and objects in their own way, made from a JSON schema. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from daemon.engine.output.argument_types import ArgumentType, listed_values, type_names, type_of
from daemon.engine.output.notations.syntax import (
    Choice,
    Json,
    Later,
    Maybe,
    Part,
    Text,
    Unenforceable,
    refuse_limits,
    within,
)

_SIZES = ("minItems", "maxItems", "uniqueItems", "contains", "prefixItems")
_MEMBERS = ("patternProperties", "minProperties", "maxProperties", "propertyNames", "dependentRequired")


@dataclass(frozen=True, slots=True)
class Style:
    """
    How a notation writes values.

    Attributes:
        text: Returns the syntax of any string, for None, or of one string.
        items: Returns the syntax of a list of any length, given that of an item.
        members: Returns the syntax of an object, given its members and which of them it must have.
        anything: Returns the syntax of an object of any members; None if the notation cannot have one.
    """

    text: Callable[[str | None], Part]
    items: Callable[[Part], Part]
    members: Callable[[Mapping[str, Part], frozenset[str]], Part]
    anything: Callable[[], Part] | None = None


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
        return self._value(type_of([schema], self._root))

    def _value(self, kind: ArgumentType) -> Part:
        key = tuple(map(id, kind.parts))
        if key in self._known:
            return self._known[key]
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
        for word in _SIZES:
            if any(word in part for part in kind.parts):
                raise Unenforceable(f"has `{word}`, which this model's notation of calls cannot keep to")
        return [self._style.items(self._value(kind.item()))]

    def _objects(self, kind: ArgumentType) -> list[Part]:
        if "object" not in kind.kinds:
            return []
        described = [part for part in kind.parts if isinstance(part.get("properties"), dict) and part["properties"]]
        for word in _MEMBERS:
            if any(word in part for part in kind.parts):
                raise Unenforceable(f"has `{word}`, which this model's notation of calls cannot keep to")
        if not described:
            if any(part.get("additionalProperties") is False for part in kind.parts):
                return [self._style.members({}, frozenset())]
            if self._style.anything is None or any(part.get("required") for part in kind.parts):
                raise Unenforceable("has an object without properties, which this model's notation cannot keep to")
            return [self._style.anything()]
        return [self._object(part) for part in described]

    def _object(self, part: Mapping[str, Any]) -> Part:
        properties = part["properties"]
        required = frozenset(part.get("required") or ())
        if not required <= set(properties):
            raise Unenforceable("requires a property that it does not describe")
        return self._style.members({name: self.of(schema) for name, schema in properties.items()}, required)


def optional(parts: Mapping[str, Part], required: frozenset[str]) -> list[Part]:
    """Return the members of an object in order; those that may be missing are Maybe."""
    return [part if name in required else Maybe(part) for name, part in parts.items()]


def _states_type(part: Mapping[str, Any]) -> bool:
    return any(word in part for word in ("type", "enum", "const"))
