"""
Tools that a request offers, as the model is told of them. Pure.

A model knows functions with one name each. A custom tool is a function of one parameter. A tool of a namespace has both
names in its own: `mcp__files__read` is `read` of `mcp__files`. Codex has a namespace for each MCP server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.http.responses.request_types import AnyTool, CustomTool, FunctionTool, Namespace
from mlx_sidecar import Tool

CUSTOM_PARAMETER = "input"
"""The one parameter of the function that a custom tool is for the model."""


@dataclass(frozen=True, slots=True)
class Offered:
    """
    A tool that the model is told of.

    Attributes:
        tool: As the request has it.
        place: Its parameter, such as "tools[2]" or "tools[3].tools[0]".
        namespace: Name of its namespace; None if it is in none.
        about: What the namespace says of itself, with its first tool; else empty.
    """

    tool: FunctionTool | CustomTool
    place: str
    namespace: str | None = None
    about: str = ""

    @property
    def name(self) -> str:
        """Its name for the model."""
        return flat(self.namespace, self.tool.name)

    def takes_encrypted(self) -> bool:
        """Tell whether its client takes some of its arguments as encrypted, unless a call says that none is."""
        schema = self.tool.parameters if isinstance(self.tool, FunctionTool) else None
        properties = (schema or {}).get("properties")
        values = properties.values() if isinstance(properties, dict) else ()
        return any(isinstance(one, dict) and one.get("encrypted") is True for one in values)

    def told(self) -> Tool:
        """Return what the model is told of it."""
        text = "\n\n".join(one for one in (self.about, self.tool.description) if one)
        if isinstance(self.tool, FunctionTool):
            return Tool(self.name, text, self.tool.parameters or "")
        schema = {"type": "object", "properties": {CUSTOM_PARAMETER: _input(self.tool)}, "required": [CUSTOM_PARAMETER]}
        return Tool(self.name, text, schema)


def flat(namespace: str | None, name: str) -> str:
    """Return the name that a tool has for the model."""
    return f"{namespace}__{name}" if namespace else name


def offered(tools: Sequence[AnyTool] | None) -> list[Offered]:
    """Return the tools that the model is told of."""
    return [one for one in _all(tools or ()) if isinstance(one, Offered)]


def left_out(tools: Sequence[AnyTool] | None) -> list[str]:
    """Return a note for each tool that the model is not told of. Its kind is the caller's word: it is not repeated."""
    places = [one for one in _all(tools or ()) if isinstance(one, str)]
    return [f"{place} is left out: only functions and custom tools" for place in places]


def _all(tools: Sequence[AnyTool]) -> Iterator[Offered | str]:
    """Yield all tools; of one that the model is not told of, its place."""
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        if isinstance(tool, Namespace):
            about = tool.description or ""
            for number, inner in enumerate(tool.tools):
                one = _one(inner, f"{place}.tools[{number}]", tool.name, about)
                about = "" if isinstance(one, Offered) else about
                yield one
        else:
            yield _one(tool, place)


def _one(tool: AnyTool, place: str, namespace: str | None = None, about: str = "") -> Offered | str:
    return Offered(tool, place, namespace, about) if isinstance(tool, FunctionTool | CustomTool) else place


def _input(tool: CustomTool) -> dict[str, Any]:
    """Return the schema of a custom tool's input. A grammar is told to the model: a schema cannot force it."""
    if tool.format is None or tool.format.type == "text":
        return {"type": "string"}
    return {
        "type": "string",
        "description": f"Text of this {tool.format.syntax or ''} grammar:\n{tool.format.definition}",
    }
