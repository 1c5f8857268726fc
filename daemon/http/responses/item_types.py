"""OpenAI's responses: the types of input items, of which a conversation is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from daemon.http.parameters import Parameters

_OWN: Mapping[str, str] = {
    "id": "clients give new ids with each request; the prompt has none, so that its prefix stays",
    "status": "what is there is read",
}
"""Parameters of all items without effect."""
_CALL: Mapping[str, str] = {
    **_OWN,
    "caller": "the model is the only caller",
    "async": "what is there is read",
}
"""Those of calls, and of what they brought."""


class Part(Parameters):
    """A part of a message or of a tool's output."""

    type: Literal["input_text", "output_text", "text", "refusal"] = Field(description="text; models read nothing else")
    text: str | None = Field(None, description="the text of a text part")
    refusal: str | None = Field(None, description="the text of a refusal")

    harmless: ClassVar[Mapping[str, str]] = {
        "annotations": "the model reads the text alone",
        "logprobs": "the model reads the text alone",
        "prompt_cache_breakpoint": "prefixes are cached at every place",
    }


def _parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


Content = Annotated[list[Part], BeforeValidator(_parts)]
"""Text, or a list of parts; text becomes one part, so that errors need not tell two forms apart."""


class MessageItem(Parameters):
    """A message."""

    type: Literal["message"] = Field("message", description="`message`, or left out")
    role: Literal["developer", "system", "user", "assistant"] = Field(
        description="`developer` is `system` for models that have no such role"
    )
    content: Content = Field(description="text, or a list of text parts, which are joined")

    harmless: ClassVar[Mapping[str, str]] = {**_OWN, "phase": "chat templates have no place for it"}


class FunctionCallItem(Parameters):
    """A call of a function that the model made."""

    type: Literal["function_call"] = Field(description="`function_call`")
    call_id: str = Field(description="name of the call")
    name: str = Field(description="name of the tool")
    namespace: str | None = Field(None, description="name of the tool's group, if it has one")
    arguments: str = Field(description="arguments, a JSON object as text")

    harmless: ClassVar[Mapping[str, str]] = _CALL


class FunctionOutputItem(Parameters):
    """What a function brought."""

    type: Literal["function_call_output"] = Field(description="`function_call_output`")
    call_id: str | None = Field(None, description="the call that it answers; without one it is a turn of the user")
    output: Content = Field(description="text, or a list of text parts, which are joined")
    name: str | None = Field(None, description="what the text is of, if there is no call")

    harmless: ClassVar[Mapping[str, str]] = {**_CALL, "namespace": "the name tells enough"}


class CustomCallItem(Parameters):
    """A call of a custom tool that the model made."""

    type: Literal["custom_tool_call"] = Field(description="`custom_tool_call`")
    call_id: str = Field(description="name of the call")
    name: str = Field(description="name of the tool")
    namespace: str | None = Field(None, description="name of the tool's group, if it has one")
    input: str = Field(description="what the tool was given")

    harmless: ClassVar[Mapping[str, str]] = _CALL


class CustomOutputItem(Parameters):
    """What a custom tool brought."""

    type: Literal["custom_tool_call_output"] = Field(description="`custom_tool_call_output`")
    call_id: str = Field(description="the call that it answers")
    output: Content = Field(description="text, or a list of text parts, which are joined")

    harmless: ClassVar[Mapping[str, str]] = {**_CALL, "name": "the call has it"}


class ReasoningPart(Parameters):
    """A part of a reasoning."""

    type: Literal["summary_text", "reasoning_text", "text"] = Field(description="as it came")
    text: str = Field(description="its text")


class ReasoningItem(Parameters):
    """A reasoning of the model. The first of `content`, `encrypted_content` and `summary` that has text is read."""

    type: Literal["reasoning"] = Field(description="`reasoning`")
    summary: list[ReasoningPart] | None = Field(None, description="as it came, if nothing else has the text")
    content: list[ReasoningPart] | None = Field(None, description="as it came; it is read first")
    encrypted_content: str | None = Field(
        None, description="as it came; another server's is left out, which `x-mlx-sidecar-note` tells"
    )

    harmless: ClassVar[Mapping[str, str]] = _OWN


class ReferenceItem(Parameters):
    """An item of an answer that is kept."""

    type: Literal["item_reference"] = Field("item_reference", description="`item_reference`, or left out")
    id: str = Field(description="the item's id")


class OtherItem(Parameters):
    """An item of a type that is not read."""

    model_config = ConfigDict(extra="ignore")

    type: Any = Field(description="any other type is refused")


def _tag(value: Any) -> str:
    """Return the tag of an item's type. Tags have angle brackets: paths of parameters leave them out."""
    if not isinstance(value, dict):
        return "<message>" if not hasattr(value, "type") else f"<{value.type}>"
    default = "item_reference" if "id" in value and "role" not in value else "message"
    kind = value.get("type")
    kind = default if kind is None else kind
    return f"<{kind}>" if kind in _KINDS else "<other>"


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")]
    | Annotated[CustomCallItem, Tag("<custom_tool_call>")]
    | Annotated[CustomOutputItem, Tag("<custom_tool_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ReferenceItem, Tag("<item_reference>")]
    | Annotated[OtherItem, Tag("<other>")],
    Discriminator(_tag),
]
"""An item. Its `type` decides which; one without is a message, or a reference if it has an id and no role."""

_KINDS = (
    "message",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "reasoning",
    "item_reference",
)
