"""Tool calls: from what a model wrote between its marks to calls of the request's tools."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from mlx_sidecar.v1 import sidecar_pb2 as pb

MOST_CHARACTERS = 256 * 1024
"""The parsers are regular expressions on the MLX thread; what is longer is not read."""

_ID = string.ascii_letters + string.digits
_ID_LENGTH = 9
"""Nine letters and digits: Mistral's templates accept no other ids."""

log = structlog.get_logger()


def read(
    written: str, parse: Callable[[str, Any], Any], tools: Sequence[dict[str, Any]]
) -> list[pb.GeneratedToolCall] | None:
    """
    Return the calls in what a model wrote, without their index; None if it is not, as a whole, calls of these tools.

    Args:
        written: The text between the marks.
        parse: mlx-lm's parser of this notation; returns one call or several.
        tools: The request's tools, as chat templates get them.
    """
    if len(written) > MOST_CHARACTERS:
        return None
    try:
        parsed = parse(written, list(tools))
        names = {tool["function"]["name"] for tool in tools}
        return [_call(entry, names) for entry in (parsed if isinstance(parsed, list) else [parsed])] or None
    except Exception as error:  # parsers index, unpack and recurse as if models made no mistakes
        log.info("a tool call cannot be read and is passed on as text", error=type(error).__name__)
        return None


def _call(entry: Any, names: set[str]) -> pb.GeneratedToolCall:
    name, arguments = entry["name"], entry.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if name not in names or not isinstance(arguments, dict):
        raise ValueError("this is no call of one of the tools")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()  # half a surrogate pair is no text, and could not be sent
    given = entry.get("id")
    made = "".join(secrets.choice(_ID) for _ in range(_ID_LENGTH))
    return pb.GeneratedToolCall(id=given if isinstance(given, str) and given else made, name=name, arguments_json=text)
