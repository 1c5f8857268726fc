"""
Says in words what a conversation has that is no text: what tools brought, and calls of other servers' tools. Pure.

A picture of the user's is refused. For a picture that a tool brought the error would end the session, as each later
request has it as well. So what tools brought is told in words. So is what another server did with tools of its own, in
a session that goes on here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_SPACE = " \t\r\n"
"""White space of JSON. Python knows more of it, which the daemon refuses."""


def left_out(kind: str) -> str:
    """Return what the model is told instead of a thing that a tool brought; `kind` says what it was, as "image"."""
    return f"[{kind} left out: this model reads text alone]"


def told(part: Any, kinds: Mapping[str, str]) -> Any:
    """
    Return a part of what a tool brought as a part of text, if it is none; else itself.

    Args:
        part: The part, as the request has it.
        kinds: The word for each type of part that is no text.
    """
    kind = part.get("type") if isinstance(part, dict) else None
    return {"type": "text", "text": left_out(kinds[kind])} if isinstance(kind, str) and kind in kinds else part


def arguments(text: str) -> tuple[str, bool]:
    """
    Return arguments of a call as text of a JSON object, and whether the model is told that they are none.

    A call that was cut short has a part of an object. Agents send it back with the error that came of it.
    """
    try:
        given = json.loads(text.strip(_SPACE) or "null")
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()  # NaN, or half a character, is no JSON
    except (ValueError, RecursionError):
        given = text
    if given is None:
        return "{}", False
    return (text, False) if isinstance(given, dict) else (json.dumps({"INVALID_JSON": text}, ensure_ascii=False), True)


def step(kind: str, fields: Mapping[str, Any]) -> str:
    """Return a step that another server took as a line that the model reads; fields that are None are left out."""
    words = [f"{name}: {said(value)}" for name, value in fields.items() if value is not None]
    return f"[Earlier step on another server: {'; '.join([kind, *words])}]\n"


def said(value: Any) -> str:
    """Return a value as the model reads it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def readable(value: Any) -> Any:
    """Return a JSON value without what only its server can read: texts that are encrypted, and bytes as base64."""
    if isinstance(value, list):
        return [readable(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "base64":
        return "left out"
    return {name: readable(one) for name, one in value.items() if not name.startswith("encrypted_")}
