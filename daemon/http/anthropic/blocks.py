"""Anthropic's content blocks in requests: text, thinking, calls of tools, and what the tools answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from daemon.http.in_words import left_out
from daemon.http.parameters import Items, Parameters


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
    cache_control: CacheControl | None = Field(None, description="keeps the prompt")


class RedactedThinkingBlock(Parameters):
    """Thinking that another server has encrypted."""

    type: Literal["redacted_thinking"] = Field(description="left out, which `x-mlx-sidecar-note` tells")
    data: str = Field(description="nothing that this server can read")


class ToolUseBlock(Parameters):
    """A call of a tool."""

    type: Literal["tool_use"] = Field(description="`tool_use`")
    id: str = Field(description="name of the call")
    name: str = Field(description="name of the tool")
    input: Any = Field(description="its arguments, an object; anything else is told to the model as `INVALID_JSON`")
    cache_control: CacheControl | None = Field(None, description="keeps the prompt")

    harmless: ClassVar[Mapping[str, str]] = {
        "caller": "the model is the only caller",
        "toolset_name": "tools have one name",
    }


def _texts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Texts = Annotated[Items[TextBlock], BeforeValidator(_texts)]
"""Text, or a list of text blocks; text becomes one block, so that errors need not tell two forms apart."""


_NO_TEXT = {"image": "image", "document": "document", "browser_state": "picture of a browser"}


def _results(content: Any) -> Any:
    blocks = _texts(content)
    return [_result(block) for block in blocks] if isinstance(blocks, list) else blocks


def _result(block: Any) -> Any:
    """Return a block of what a tool brought as a text block, if the API knows its type."""
    found: list[Any]
    match block:
        case {"type": "tool_reference", "tool_name": str(text)}:
            found = [text]
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            found = [block.get("title"), text]
        case {"type": "document", "source": {"type": "content", "content": content}}:
            found = [block.get("title"), *_inner_texts(content)]
        case {"type": "search_result", "content": content}:
            found = [block.get("title"), block.get("source"), *_inner_texts(content)]
        case {"type": str(kind)} if kind in _NO_TEXT:
            found = [left_out(_NO_TEXT[kind])]
        case _:
            return block
    text = "\n".join(one for one in found if isinstance(one, str) and one)
    return {"type": "text", "text": text, "cache_control": block.get("cache_control")}


def _inner_texts(content: Any) -> list[Any]:
    blocks = _results(content)
    return [one.get("text") for one in blocks if isinstance(one, dict)] if isinstance(blocks, list) else []


Results = Annotated[Items[TextBlock], BeforeValidator(_results)]
"""What a tool brought: as `Texts`. What has text within becomes text, and other things are told in words."""


class ToolResultBlock(Parameters):
    """What a tool answered."""

    type: Literal["tool_result"] = Field(description="`tool_result`")
    tool_use_id: str = Field(description="name of the call")
    content: Results | None = Field(
        None,
        description="text, or text blocks, which become paragraphs; documents, results of a search and references to "
        "tools with their text; the model is told that images, and documents without text, were there",
    )
    is_error: bool | None = Field(None, description="the text is told as an error")
    cache_control: CacheControl | None = Field(None, description="keeps the prompt")

    harmless: ClassVar[Mapping[str, str]] = {"toolset_name": "tools have one name"}


class ServerStepBlock(Parameters):
    """A step that a server took with a tool of its own. The model is told of it in words, in the assistant's turn."""

    model_config = ConfigDict(extra="ignore")

    type: Literal[
        "server_tool_use",
        "mcp_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "mcp_tool_result",
    ] = Field(description="a step of another server; its name, input and content become words in the assistant's turn")
    name: str | None = Field(None, description="which tool")
    server_name: str | None = Field(None, description="which server of tools")
    input: Any = Field(None, description="what the tool was given")
    content: Any = Field(None, description="what it brought, without what is encrypted or base64")
    cache_control: CacheControl | None = Field(None, description="keeps the prompt")


KINDS: Mapping[str, type[Parameters]] = {
    "text": TextBlock,
    "thinking": ThinkingBlock,
    "redacted_thinking": RedactedThinkingBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
    **dict.fromkeys(get_args(ServerStepBlock.model_fields["type"].annotation), ServerStepBlock),
}
"""The type of each kind of block."""


_NAMED = ", ".join(kind for kind, type_ in KINDS.items() if type_ is not ServerStepBlock)


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
        raise refusal("type", f"must be one of {_NAMED}; models read text, and no images or documents")
    return KINDS[kind].model_validate(value)


Block: TypeAlias = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock | ServerStepBlock
"""A block of any kind."""
Content = Annotated[Items[Annotated[Block, BeforeValidator(_block)]], BeforeValidator(_texts)]
"""Text, or a list of blocks; text becomes one block."""
