"""OpenAI's responses: the types of requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from daemon.http.parameters import Items, Parameters, Refusal
from daemon.http.responses.item_types import Item

_CALLER = "the model is the only caller"
_ASYNC = Refusal("the next request has what a tool brought", (False,))


class FunctionTool(Parameters):
    """A function that the model may call."""

    type: Literal["function"] = Field(description="`function`")
    name: str = Field(description="name of the tool")
    description: str | None = Field(None, description="what it does, for the model to read")
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of its arguments")

    harmless: ClassVar[Mapping[str, str]] = {
        "strict": "arguments follow the schema as far as the model's notation of calls can be guarded",
        "defer_loading": "the model is told of all tools at once",
        "output_schema": "what a tool brings is read as text",
        "allowed_callers": _CALLER,
    }
    refused: ClassVar[Mapping[str, Refusal]] = {"async": _ASYNC}


class CustomFormat(Parameters):
    """The form of a custom tool's input."""

    type: Literal["text", "grammar"] = Field(description="`grammar` is told to the model, and not forced on it")
    syntax: str | None = Field(None, description="of the grammar")
    definition: str | None = Field(None, description="the grammar")

    belongs: ClassVar[Mapping[str, tuple[str, ...]]] = {"syntax": ("grammar",), "definition": ("grammar",)}


class CustomTool(Parameters):
    """A tool that is given text. For the model it is a function with one parameter, `input`."""

    type: Literal["custom"] = Field(description="`custom`")
    name: str = Field(description="name of the tool")
    description: str | None = Field(None, description="what it does, for the model to read")
    format: CustomFormat | None = Field(None, description="any text, or text of a grammar")

    harmless: ClassVar[Mapping[str, str]] = {
        "defer_loading": "the model is told of all tools at once",
        "allowed_callers": _CALLER,
    }
    refused: ClassVar[Mapping[str, Refusal]] = {"async": _ASYNC}


class OtherTool(Parameters):
    """A tool of another type: left out, whatever it has, and told in the header `x-mlx-sidecar-note`."""

    model_config = ConfigDict(extra="ignore")

    type: str = Field(description="a built-in tool; it is left out, which `x-mlx-sidecar-note` tells")


def _kind(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def _inner_tag(value: Any) -> str:
    return f"<{kind}>" if (kind := _kind(value)) in ("function", "custom") else "<other>"


def _tool_tag(value: Any) -> str:
    return "<namespace>" if _kind(value) == "namespace" else _inner_tag(value)


InnerTool = Annotated[
    Annotated[FunctionTool, Tag("<function>")]
    | Annotated[CustomTool, Tag("<custom>")]
    | Annotated[OtherTool, Tag("<other>")],
    Discriminator(_inner_tag),
]
"""A tool of a namespace."""


class Namespace(Parameters):
    """A group of tools. The model knows each of them by both names, as `mcp__files__read`."""

    type: Literal["namespace"] = Field(description="`namespace`")
    name: str = Field(min_length=1, description="name of the group; calls of its tools have it as `namespace`")
    description: str | None = Field(None, description="the beginning of the description of its first tool")
    tools: Items[InnerTool] = Field(description="functions and custom tools; others are left out")


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("<function>")]
    | Annotated[CustomTool, Tag("<custom>")]
    | Annotated[Namespace, Tag("<namespace>")]
    | Annotated[OtherTool, Tag("<other>")],
    Discriminator(_tool_tag),
]
"""A tool. Its `type` decides which."""


class AllowedTool(Parameters):
    """A tool that may be called."""

    type: str = Field(description="`function` or `custom`; one of a type that is left out of `tools` is left out here")
    name: str | None = Field(None, description="name of the tool")

    harmless: ClassVar[Mapping[str, str]] = {"server_label": "built-in tools are left out"}


class ToolChoice(Parameters):
    """Whether tools are called, and which."""

    type: Literal["none", "auto", "required", "function", "custom", "allowed_tools"] = Field(
        description="none, as the model likes, nothing else, the one of that name, or those in `tools`"
    )
    name: str | None = Field(None, description="the tool to call, with `function` and `custom`")
    mode: Literal["auto", "required"] | None = Field(
        None, description="with `allowed_tools`: as the model likes, or nothing else"
    )
    tools: Items[AllowedTool] | None = Field(
        None, description="with `allowed_tools`: those that may be called; the prompt has all of the request's `tools`"
    )

    belongs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "name": ("function", "custom"),
        "mode": ("allowed_tools",),
        "tools": ("allowed_tools",),
    }


def _choice(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class TextFormat(Parameters):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="which form; the model cannot leave it")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="JSON schema, with `json_schema`")

    belongs: ClassVar[Mapping[str, tuple[str, ...]]] = {"schema_": ("json_schema",)}

    harmless: ClassVar[Mapping[str, str]] = {
        "name": "it is for the caller",
        "description": "the model sees the effect of the schema, not its text",
        "strict": "the schema is always kept to",
    }


class TextOptions(Parameters):
    """The answer's text."""

    format: TextFormat | None = Field(None, description="text, any JSON object, or JSON of a schema")

    refused: ClassVar[Mapping[str, Refusal]] = {"verbosity": Refusal("ask for it in the prompt", ("medium",))}


class ReasoningOptions(Parameters):
    """The reasoning."""

    effort: str | None = Field(
        None,
        description="as the chat template knows it, such as `low`; `none` turns thinking off; the answer's "
        "`reasoning.effort` is null if the model has nothing of the kind",
    )
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="any value: the whole reasoning comes as the item's summary; unset: as its content"
    )

    harmless: ClassVar[Mapping[str, str]] = {
        "context": "the chat template decides which reasoning of earlier turns is read"
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        "generate_summary": Refusal("use `summary`"),
        "mode": Refusal("there is one mode", ("standard",)),
    }


class StreamOptions(Parameters):
    """What a stream has besides the answer."""

    harmless: ClassVar[Mapping[str, str]] = {"include_obfuscation": "events are never padded"}


def _items(value: Any) -> Any:
    return [{"type": "message", "role": "user", "content": value}] if isinstance(value, str) else value


Include = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class Asked(Parameters):
    """The parameters that make a prompt: those of an answer and of a count."""

    model: str = Field(min_length=1, description='Hub id, alias, absolute directory, or "embedded"')
    input: Annotated[Items[Item], BeforeValidator(_items)] = Field(
        description="text of a user's message, or the items of a conversation"
    )
    instructions: str | None = Field(None, description="a system message before all others, for this request alone")
    previous_response_id: str | None = Field(None, description="the conversation so far, if that answer is kept")
    tools: Items[AnyTool] | None = Field(None, description="functions and custom tools that the model may call")
    tool_choice: Annotated[ToolChoice | None, BeforeValidator(_choice)] = Field(
        None, description="`none`, `auto`, `required`, or an object that names one tool, or some"
    )
    text: TextOptions | None = Field(None, description="the form of the answer")
    reasoning: ReasoningOptions | None = Field(None, description="how much of it, and in which form it comes")

    refused: ClassVar[Mapping[str, Refusal]] = {
        "conversation": Refusal("use `previous_response_id`"),
        "prompt": Refusal("give the prompt itself"),
        "truncation": Refusal("leave out turns in the client", ("disabled",)),
    }


class ResponseRequest(Asked):
    """The body of `POST /v1/responses`."""

    store: bool | None = Field(
        None, description="unset is true: the answer is kept in the door's memory, see [What is kept](#what-is-kept)"
    )
    stream: bool | None = Field(None, description="the answer comes piece by piece, as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only with `stream`")
    parallel_tool_calls: bool | None = Field(None, description="false ends the answer with its first call")
    include: Items[Include] | None = Field(
        None,
        description="`reasoning.encrypted_content`: the reasoning in a form that can be given back; "
        "`message.output_text.logprobs`: log-probabilities; others are about tools that are not there",
    )
    max_output_tokens: int | None = Field(
        None, ge=1, description="most tokens of the answer, reasoning included; lowered to what the context holds"
    )
    temperature: float | None = Field(None, description="0 (greedy) to 100; unset is the model's own")
    top_p: float | None = Field(
        None, description="above 0, up to 1; unset is the model's own; without effect at temperature 0"
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="log-probabilities of the text, and of so many of the likeliest tokens"
    )
    metadata: dict[str, Any] | None = Field(None, description="given back with the answer")
    prompt_cache_retention: Literal["in_memory", "24h"] | None = Field(
        None, description="`24h`: the prompt's prefix is evicted after others for a day"
    )

    harmless: ClassVar[Mapping[str, str]] = {
        "user": "requests of one user are not kept apart",
        "safety_identifier": "nothing is reported",
        "client_metadata": "it is for the provider's records, and there are none",
        "service_tier": "there is one tier",
        "prompt_cache_key": "prefixes are found by their content",
        "prompt_cache_options": "prefixes are cached without being asked to",
        "max_tool_calls": "it is about tools that a server runs, and none are",
        "access_programs": "there are none",
        "background_options": "they are for `background`, which is refused",
        "image": "models read no images",
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        **Asked.refused,
        "background": Refusal("keep the connection open", (False,)),
        "context_management": Refusal("leave out turns in the client", ([],)),
        "moderation": Refusal("nothing is moderated"),
    }


class CountRequest(Asked):
    """The body of `POST /v1/responses/input_tokens`."""

    harmless: ClassVar[Mapping[str, str]] = {"parallel_tool_calls": "the prompt is the same with one call or several"}
    refused: ClassVar[Mapping[str, Refusal]] = {
        **Asked.refused,
        "personality": Refusal("write it into `instructions`"),
    }
