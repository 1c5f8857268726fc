"""OpenAI's responses: the types of input items, of which a conversation is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from daemon.http.in_words import told
from daemon.http.parameters import Items, Parameters

_OWN: Mapping[str, str] = {
    "id": "clients give new ids with each request; the prompt has none, so that its prefix stays",
    "status": "what is there is read",
    "internal_chat_message_metadata_passthrough": "it is Codex's own",
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


Content = Annotated[Items[Part], BeforeValidator(_parts)]
"""Text, or a list of parts; text becomes one part, so that errors need not tell two forms apart."""


_NO_TEXT = {
    "input_image": "image",
    "input_file": "file",
    "input_audio": "audio",
    "encrypted_content": "encrypted text",
}


def _output(content: Any) -> Any:
    parts = _parts(content)
    return [told(part, _NO_TEXT) for part in parts] if isinstance(parts, list) else parts


Output = Annotated[Items[Part], BeforeValidator(_output)]
"""What a tool brought: as `Content`. Pictures, sound, files and what is encrypted are told in words."""


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
    arguments: str = Field(
        description="arguments, a JSON object as text; other text is told to the model as `INVALID_JSON`"
    )

    harmless: ClassVar[Mapping[str, str]] = {**_CALL, "encrypted_function_args": "the arguments are read as they are"}


class FunctionOutputItem(Parameters):
    """What a function brought."""

    type: Literal["function_call_output"] = Field(description="`function_call_output`")
    call_id: str | None = Field(None, description="the call that it answers; without one it is a turn of the user")
    output: Output = Field(
        description="text, or a list of text parts, which are joined; others, such as images, are told in words"
    )
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
    output: Output = Field(
        description="text, or a list of text parts, which are joined; others, such as images, are told in words"
    )

    harmless: ClassVar[Mapping[str, str]] = {**_CALL, "name": "the call has it"}


class ReasoningPart(Parameters):
    """A part of a reasoning."""

    type: Literal["summary_text", "reasoning_text", "text"] = Field(description="as it came")
    text: str = Field(description="its text")


class ReasoningItem(Parameters):
    """A reasoning of the model. The first of `content`, `encrypted_content` and `summary` that has text is read."""

    type: Literal["reasoning"] = Field(description="`reasoning`")
    summary: Items[ReasoningPart] | None = Field(None, description="as it came, if nothing else has the text")
    content: Items[ReasoningPart] | None = Field(None, description="as it came; it is read first")
    encrypted_content: str | None = Field(
        None, description="as it came; another server's is left out, which `x-mlx-sidecar-note` tells"
    )

    harmless: ClassVar[Mapping[str, str]] = _OWN


class AgentPart(Parameters):
    """A part of a message between agents."""

    type: Literal["input_text", "encrypted_content"] = Field(description="text, or what a server encrypted")
    text: str | None = Field(None, description="the text of a text part")
    encrypted_content: str | None = Field(
        None, description="as it came; what another server encrypted is left out, which `x-mlx-sidecar-note` tells"
    )

    belongs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("input_text",),
        "encrypted_content": ("encrypted_content",),
    }


class AgentMessageItem(Parameters):
    """A message that another agent of the client wrote. For the model it is a turn of the user."""

    type: Literal["agent_message"] = Field(description="`agent_message`")
    content: Items[AgentPart] = Field(description="a list of parts, which are joined")

    harmless: ClassVar[Mapping[str, str]] = {
        **_OWN,
        "author": "the content begins with it",
        "recipient": "the content begins with it",
    }


class ServerStepItem(Parameters):
    """A step that a server took with a tool of its own. The model is told of it in words, in the assistant's turn."""

    type: Literal[
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "computer_call",
        "tool_search_call",
        "tool_search_output",
        "mcp_list_tools",
        "mcp_call",
        "mcp_approval_request",
        "mcp_approval_response",
    ] = Field(description="a step of another server; its parameters become words in the assistant's turn")
    action: Any = Field(None, description="what was searched, opened, drawn or done")
    actions: Items[Any] | None = Field(None, description="several of them")
    queries: Items[Any] | None = Field(None, description="what was searched")
    results: Items[Any] | None = Field(None, description="what was found")
    code: str | None = Field(None, description="what was run")
    outputs: Items[Any] | None = Field(None, description="what it brought")
    server_label: str | None = Field(None, description="which server of tools")
    name: str | None = Field(None, description="which tool")
    arguments: Any = Field(None, description="what the tool was given")
    output: str | None = Field(None, description="what the tool brought")
    error: Any = Field(None, description="what went wrong")
    tools: Items[Any] | None = Field(None, description="tools that a server has; the model is told their names")
    approve: bool | None = Field(None, description="whether the user approved")
    reason: str | None = Field(None, description="why")
    revised_prompt: str | None = Field(None, description="what was drawn")
    result: str | None = Field(None, description="a picture; the model is told that there was one")
    status: str | None = Field(None, description="how it ended, unless it is `completed`")

    harmless: ClassVar[Mapping[str, str]] = {
        **{name: why for name, why in _OWN.items() if name != "status"},
        "agent": "it is about the other server",
        "call_id": "what the step brought is in it",
        "execution": "it is about where the step was taken",
        "approval_request_id": "the order of items tells it",
        "container_id": "it is about the other server",
        "pending_safety_checks": "it is about the other server",
        **dict.fromkeys(("background", "output_format", "quality", "size"), "it is about a picture"),
    }


class ClientCallItem(Parameters):
    """A call of a tool of OpenAI's that the client ran itself: for the model a call like any other."""

    type: Literal["local_shell_call", "shell_call", "apply_patch_call"] = Field(
        description="the tool is named `local_shell`, `shell` or `apply_patch`"
    )
    call_id: str = Field(description="name of the call")
    action: dict[str, Any] | None = Field(None, description="arguments of a shell")
    operation: dict[str, Any] | None = Field(None, description="arguments of a patch")

    harmless: ClassVar[Mapping[str, str]] = {**_CALL, "environment": "it is about where the client ran it"}


class ClientOutputItem(Parameters):
    """What such a call brought."""

    type: Literal["local_shell_call_output", "shell_call_output", "apply_patch_call_output"] = Field(
        description="what the client's call brought"
    )
    call_id: str | None = Field(None, description="the call that it answers")
    id: str | None = Field(None, description="the call that it answers, if there is no `call_id`")
    output: Any = Field(None, description="text, or a list, which the model reads as JSON")
    status: str | None = Field(None, description="read if there is no output")

    harmless: ClassVar[Mapping[str, str]] = {
        **{name: why for name, why in _CALL.items() if name not in ("id", "status")},
        "max_output_length": "what is there is read",
    }


class ReferenceItem(Parameters):
    """An item of an answer that is kept."""

    type: Literal["item_reference"] | None = Field("item_reference", description="`item_reference`, or left out")
    id: str = Field(description="the item's id")


class OtherItem(Parameters):
    """An item of a type that is not read."""

    model_config = ConfigDict(extra="ignore")

    type: Any = Field(
        description="any other type is refused, such as one with pictures, or with text that is encrypted"
    )


def _tag(value: Any) -> str:
    """Return the tag of an item's type. Tags have angle brackets: paths of parameters leave them out."""
    if not isinstance(value, dict):
        return "<message>" if not hasattr(value, "type") else f"<{_TAGS.get(value.type, 'other')}>"
    default = "item_reference" if "id" in value and "role" not in value else "message"
    kind = value.get("type")
    kind = default if kind is None else kind
    return f"<{_TAGS[kind]}>" if isinstance(kind, str) and kind in _TAGS else "<other>"


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")]
    | Annotated[CustomCallItem, Tag("<custom_tool_call>")]
    | Annotated[CustomOutputItem, Tag("<custom_tool_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[AgentMessageItem, Tag("<agent_message>")]
    | Annotated[ServerStepItem, Tag("<server_step>")]
    | Annotated[ClientCallItem, Tag("<client_call>")]
    | Annotated[ClientOutputItem, Tag("<client_output>")]
    | Annotated[ReferenceItem, Tag("<item_reference>")]
    | Annotated[OtherItem, Tag("<other>")],
    Discriminator(_tag),
]
"""An item. Its `type` decides which; one without is a message, or a reference if it has an id and no role."""

_TAGS: Mapping[str, str] = {
    **{
        kind: kind
        for kind in (
            "message",
            "function_call",
            "function_call_output",
            "custom_tool_call",
            "custom_tool_call_output",
            "reasoning",
            "agent_message",
            "item_reference",
        )
    },
    **dict.fromkeys(get_args(ServerStepItem.model_fields["type"].annotation), "server_step"),
    **dict.fromkeys(get_args(ClientCallItem.model_fields["type"].annotation), "client_call"),
    **dict.fromkeys(get_args(ClientOutputItem.model_fields["type"].annotation), "client_output"),
}
"""The tag of each type of item."""

TYPES = tuple(_TAGS)
"""The types of items that are read."""
