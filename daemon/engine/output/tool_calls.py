"""Tool calls: from what a model wrote between its marks to calls of the request's tools."""

from __future__ import annotations

import json
import secrets
import string
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import regex
import structlog

from daemon.shared.log_fields import cause
from mlx_sidecar.v1 import sidecar_pb2 as pb

MOST_CHARACTERS = 256 * 1024
"""What is longer is not read."""

MOST_SECONDS = 0.25
"""
For one regular expression of a parser. They run on the MLX thread, and some take time that grows with the cube of the
text: 5 s for 16,000 characters of a model that repeats itself.
"""

_SKIPPED = ("<|open|>call ", "<function=")
"""How calls begin in notations of which mlx-lm's parsers leave out what they cannot read, or all but the first."""

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
        calls = [_call(entry, names) for entry in (parsed if isinstance(parsed, list) else [parsed])]
        return calls if len(calls) >= max(1, *(written.count(begin) for begin in _SKIPPED)) else None
    except Exception as error:  # parsers index, unpack and recurse as if models made no mistakes
        log.info("a tool call cannot be read and is passed on as text", error=cause(error))
        return None


class BoundedPattern:
    """A regular expression that gives up with TimeoutError after MOST_SECONDS."""

    def __init__(self, pattern: Any) -> None:
        self.pattern = pattern

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.pattern, name)
        return partial(value, timeout=MOST_SECONDS) if callable(value) else value


def bound(parse: Callable[[str, Any], Any]) -> None:
    """Bound the regular expressions of a parser of mlx-lm, which are attributes of its module. Harmless twice."""
    module = sys.modules[parse.__module__]
    for name, value in list(vars(module).items()):
        if isinstance(value, regex.Pattern):
            setattr(module, name, BoundedPattern(value))


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
