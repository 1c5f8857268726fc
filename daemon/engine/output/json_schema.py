"""JSON schemas as trees: what a reference names, each schema within another, a part as one of its own. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

_MOST_DIGITS = 10
"""Digits of a place in a list that a reference names; Python reads no number of thousands of them."""
_NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords with schemas by names of the caller's own."""
_VALUES = frozenset({"const", "default", "enum", "examples"})
"""Keywords with values, and not with schemas."""
_ELSEWHERE = re.compile(r'"\$ref": "#(?!/(?:\$defs|definitions)/)')
"""A reference, in JSON, to a part of the schema that is no definition."""
_WHOLE = "whole"


def referred(reference: str, root: Mapping[str, Any]) -> Any:
    """Return the part of a schema that a reference within it names (RFC 6901); None if there is none."""
    part: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, dict) and key not in part:
            key = unquote(key)  # a reference is a part of a URI, though not all programs write it so
        if isinstance(part, dict) and (key in part or not step):
            part = part[key] if step else part
        elif isinstance(part, list) and key.isdecimal() and len(key) <= _MOST_DIGITS and int(key) < len(part):
            part = part[int(key)]
        else:
            return None
    return part


def changed(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """
    Return a schema with each schema in it changed, from the innermost on.

    A property can have the name of a keyword, and a value can look like a schema. Neither is taken for what it is not.

    Args:
        schema: The schema.
        change: Returns what takes the place of a schema that is an object.
    """
    if isinstance(schema, list):
        return [changed(part, change) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return change({word: _changed_part(word, part, change) for word, part in schema.items()})


def _changed_part(word: str, part: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    if word in _NAMES and isinstance(part, dict):
        return {name: changed(one, change) for name, one in part.items()}
    return part if word in _VALUES else changed(part, change)


def within(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of a schema as a schema of its own, with what it may refer to: definitions, or else all of it."""
    part = schema if isinstance(schema, dict) else {}
    made = {**{word: root[word] for word in ("$defs", "definitions") if word in root}, **part}
    if not _ELSEWHERE.search(json.dumps(made)):
        return made
    # Without their own names, which would be the base of the references in them.
    unnamed = {word: value for word, value in root.items() if word not in ("$id", "$schema")}
    return {**changed(part, _moved), "$defs": {_WHOLE: changed(unnamed, _moved)}}


def _moved(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that refers to the same part where the whole is one of the definitions."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#"):
        return schema
    return {**schema, "$ref": f"#/$defs/{_WHOLE}{reference.removeprefix('#')}"}
