"""Anthropic's content blocks in requests: text, thinking, calls of tools, and what the tools answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from daemon.http.parameters import Parameters


class CacheControl(Parameters):
    """A mark after which the prompt is worth keeping."""

    type: Literal["ephemeral"] = Field(description="the prompt's prefix is evicted after those without a mark")
    ttl: Literal["5m", "1h"] | None = Field(None, description="for so long; default `5m`; the longest of a request")

    harmless: ClassVar[Mapping[str, str]] = {"scope": "prefixes are shared by all requests"}


class TextBlock(Parameters):
    """A text."""

    type: Literal["text"] = Field(description="`text`")
    text: str = Field(description="the text")
    cache_control: CacheControl | None = Field(None, description="keeps the prompt")

    harmless: ClassVar[Mapping[str, str]] = {"citations": "the model reads the text alone"}


class ThinkingBlock(Parameters):
    """What the model thought before an answer."""

    type: Literal["thinking"] = Field(description="`thinking`")
    thinking: str = Field(description="the reasoning of an assistant's turn, which its template may read")
    signature: str | None = Field(None, description="one of this server must fit; those of others are not looked at")


class RedactedThinkingBlock(Parameters):
    """Thinking that another server has encrypted."""

    type: Literal["redacted_thinking"] = Field(description="left out, which `x-mlx-sidecar-note` tells")
    data: str = Field(description="nothing that this server can read")


class ToolUseBlock(Parameters):
    """A call of a tool."""

    type: Literal["tool_use"] = Field(description="`tool_use`")
    id: str = Field(description="name of the call")
    name: str = Field(description="name of the tool")
    input: dict[str, Any] = Field(description="its arguments")
    cache_control: CacheControl | None = Field(None, description="keeps the prompt")

    harmless: ClassVar[Mapping[str, str]] = {
        "caller": "the model is the only caller",
        "toolset_name": "tools have one name",
    }


def _texts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Texts = Annotated[list[TextBlock], BeforeValidator(_texts)]
"""Text, or a list of text blocks; text becomes one block, so that errors need not tell two forms apart."""


class ToolResultBlock(Parameters):
    """What a tool answered."""

    type: Literal["tool_result"] = Field(description="`tool_result`")
    tool_use_id: str = Field(description="name of the call")
    content: Texts | None = Field(None, description="text, or text blocks, which become paragraphs")
    is_error: bool | None = Field(None, description="the text is told as an error")
    cache_control: CacheControl | None = Field(None, description="keeps the prompt")

    harmless: ClassVar[Mapping[str, str]] = {"toolset_name": "tools have one name"}


KINDS: Mapping[str, type[Parameters]] = {
    "text": TextBlock,
    "thinking": ThinkingBlock,
    "redacted_thinking": RedactedThinkingBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
}
"""The type of each kind of block."""


def refusal(field: str, message: str) -> ValidationError:
    """Return the error of a validator that names a field below its own place."""
    error = PydanticCustomError("refused", "{message}", {"message": message})
    return ValidationError.from_exception_data("", [InitErrorDetails(type=error, loc=(field,), input=None)])


def _block(value: Any) -> Any:
    """Return a block as the type of its kind. A union of types would put their names into the paths of errors."""
    if not isinstance(value, dict):
        raise ValueError("must be a block: an object with a type")
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise refusal("type", f"must be one of {', '.join(KINDS)}; models read text, and no images or documents")
    return KINDS[kind].model_validate(value)


Block: TypeAlias = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock
"""A block of any kind."""
Content = Annotated[list[Annotated[Block, BeforeValidator(_block)]], BeforeValidator(_texts)]
"""Text, or a list of blocks; text becomes one block."""
