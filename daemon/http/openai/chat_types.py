"""OpenAI's chat completions: the types of requests and of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationInfo

from daemon.http.in_words import told
from daemon.http.openai.logprobs import ChatScores
from daemon.http.openai.shared_types import GENERATION_HARMLESS, Sampled, Usage
from daemon.http.parameters import Items, Parameters, Refusal

_CACHE = "prefixes are cached without being asked to"
_MADE = "it is for the server that made it"
_TEXT = "the model reads the text alone"


class Part(Parameters):
    """A part of a turn's content."""

    type: Literal["text", "refusal"] = Field(description="only `text`, and `refusal` in turns of the assistant")
    text: str | None = Field(None, description="the text of a text part")
    refusal: str | None = Field(None, description="the text of a refusal")
    reasoning_content: str | None = Field(None, description="read as the turn's, if that has none")

    harmless: ClassVar[Mapping[str, str]] = {
        "cache_control": _CACHE,
        "prompt_cache_breakpoint": "prefixes are cached at every place",
        "annotations": _TEXT,
        **dict.fromkeys(("role", "tool_calls"), "the turn has its own; an SDK copies a whole turn into its part"),
    }


_NO_TEXT = {"image_url": "image", "input_audio": "audio", "file": "file"}


def _parts(content: Any, message: ValidationInfo) -> Any:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if message.data.get("role") == "tool" and isinstance(parts, list):
        return [told(part, _NO_TEXT) for part in parts]
    return parts


def _after_tools(messages: Any) -> Any:
    """
    Return turns, with what a tool brought in words where a client sends it as the user's next turn.

    Tool turns of OpenAI's API had text alone, so goose sends a tool's pictures in turns of their own behind it.
    """
    if not isinstance(messages, list):
        return messages
    turns, of_tool = [], False
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if of_tool and role == "user" and _no_text(message.get("content")):
            turns.append({**message, "content": [told(part, _NO_TEXT) for part in message["content"]]})
        else:
            turns.append(message)
            of_tool = role == "tool"
    return turns


def _no_text(content: Any) -> bool:
    """Tell whether a content is parts without text, one at least."""
    parts = content if isinstance(content, list) else []
    return bool(parts) and all(told(part, _NO_TEXT) is not part for part in parts)


Content = Annotated[Items[Part] | None, BeforeValidator(_parts)]
"""Text, or a list of parts; text becomes one part, so that errors need not tell two forms apart."""


class CalledFunction(Parameters):
    """The function of a call."""

    name: str = Field(description="name of the tool")
    arguments: str | None = Field(
        None, description="arguments, a JSON object as text; other text is told to the model as `INVALID_JSON`"
    )


class Call(Parameters):
    """A call that an assistant turn made."""

    id: str = Field(description="name of the call")
    type: Literal["function"] = Field("function", description="`function`")
    function: CalledFunction = Field(description="what was called")

    harmless: ClassVar[Mapping[str, str]] = {
        "index": "the order of the list holds",
        **dict.fromkeys(("extra_content", "provider_specific_fields", "thoughtSignature", "thought_signature"), _MADE),
    }


class Message(Parameters):
    """A turn of the conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool"] = Field(
        description="`developer` is `system` for the model"
    )
    content: Content = Field(
        None,
        description="text, or a list of text parts, which are joined; only an `assistant` turn can be without; "
        "a `tool` turn can have images, audio and files, of which the model is told that they were there, and so can a "
        "`user` turn of these alone right behind it",
    )
    reasoning_content: str | None = Field(None, description="reasoning before an assistant turn's content")
    reasoning: str | None = Field(None, description="another name of `reasoning_content`, which is read first")
    reasoning_text: str | None = Field(None, description="a third name, of GitHub Copilot")
    cot_summary: str | None = Field(None, description="a fourth name, of Copilot in VS Code")
    reasoning_details: Items[Any] | None = Field(
        None, description="reasoning as OpenRouter has it; its texts are read if no other name has any"
    )
    tool_calls: Items[Call] | None = Field(None, description="calls that an assistant turn made")
    tool_call_id: str | None = Field(None, description="the call that a `tool` turn answers")

    harmless: ClassVar[Mapping[str, str]] = {
        "name": "chat templates have no place for it",
        "refusal": "a refusal is content",
        **dict.fromkeys(("cache_control", "copilot_cache_control"), _CACHE),
        **dict.fromkeys(("annotations", "copilot_references", "copilot_confirmations"), _TEXT),
        **dict.fromkeys(("cot_id", "index", "provider_specific_fields", "reasoning_opaque"), _MADE),
        "thinking_blocks": "`reasoning_content` has their text",
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        "audio": Refusal("models answer with text"),
        "function_call": Refusal("use `tool_calls`"),
    }


class Function(Parameters):
    """A function that the model may call."""

    name: str = Field(description="name of the tool")
    description: str | None = Field(None, description="what it does, for the model to read")
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of its arguments")

    harmless: ClassVar[Mapping[str, str]] = {
        "strict": "arguments follow the schema with `tool_choice` required; otherwise as the model writes them",
    }


class Tool(Parameters):
    """A function that the model may call."""

    type: Literal["function"] = Field(description="`function`")
    function: Function | None = Field(None, description="what can be called")

    harmless: ClassVar[Mapping[str, str]] = dict.fromkeys(("cache_control", "copilot_cache_control"), _CACHE)


class OtherTool(Parameters):
    """A tool of another type: left out, whatever it has, and told in the header `x-mlx-sidecar-note`."""

    model_config = ConfigDict(extra="ignore")

    type: str = Field(description="another type; the tool is left out, which `x-mlx-sidecar-note` tells")


def _tool_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<function>" if kind == "function" else "<other>"


AnyTool = Annotated[Annotated[Tool, Tag("<function>")] | Annotated[OtherTool, Tag("<other>")], Discriminator(_tool_tag)]
"""A tool. Its `type` decides which."""


class ChosenFunction(Parameters):
    """The name of a function."""

    name: str = Field(description="name of the tool")


class AllowedTool(Parameters):
    """A tool that may be called."""

    type: str = Field(description="`function`; one of a type that is left out of `tools` is left out here")
    function: ChosenFunction | None = Field(None, description="the tool")

    harmless: ClassVar[Mapping[str, str]] = {"custom": "custom tools are left out"}


class AllowedTools(Parameters):
    """Some of the tools, and whether they are called."""

    mode: Literal["auto", "required"] = Field(description="as the model likes, or nothing else")
    tools: Items[AllowedTool] = Field(description="the tools that may be called; the prompt has all of `tools`")


class ToolChoice(Parameters):
    """Whether tools are called, and which."""

    type: Literal["none", "auto", "required", "function", "allowed_tools"] = Field(
        description="none, as the model likes, nothing else, the one in `function`, or those in `allowed_tools`"
    )
    function: ChosenFunction | None = Field(None, description="the tool to call, with `function`")
    allowed_tools: AllowedTools | None = Field(None, description="the tools to choose from, with `allowed_tools`")

    belongs: ClassVar[Mapping[str, tuple[str, ...]]] = {"function": ("function",), "allowed_tools": ("allowed_tools",)}


def _choice(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class JsonSchema(Parameters):
    """A schema for the answer."""

    schema_: dict[str, Any] | None = Field(None, alias="schema", description="JSON schema of the answer")

    harmless: ClassVar[Mapping[str, str]] = {
        "name": "it is for the caller",
        "description": "the model sees the effect of the schema, not its text",
        "strict": "the schema is always kept to",
    }


class ResponseFormat(Parameters):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="which form; the model cannot leave it")
    json_schema: JsonSchema | None = Field(None, description="with `json_schema`")

    belongs: ClassVar[Mapping[str, tuple[str, ...]]] = {"json_schema": ("json_schema",)}


class StreamOptions(Parameters):
    """What a stream has besides the answer."""

    include_usage: bool | None = Field(None, description="a last chunk with the usage")

    harmless: ClassVar[Mapping[str, str]] = {"include_obfuscation": "chunks are never padded"}


class ChatRequest(Sampled):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[Items[Message], BeforeValidator(_after_tools)] = Field(
        min_length=1, description="the conversation"
    )
    tools: Items[AnyTool] | None = Field(None, description="functions that the model may call")
    tool_choice: Annotated[ToolChoice | None, BeforeValidator(_choice)] = Field(
        None, description="`none`, `auto`, `required`, or an object that names one function, or some"
    )
    parallel_tool_calls: bool | None = Field(None, description="false ends the answer with its first call")
    response_format: ResponseFormat | None = Field(None, description="text, any JSON object, or JSON of a schema")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="as `max_tokens`, reasoning included; of both the smaller holds"
    )
    stream_options: StreamOptions | None = Field(None, description="only with `stream`")
    logprobs: bool | None = Field(None, description="log-probabilities of the answer's tokens, with their texts")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="also of so many of the likeliest; with `logprobs`")
    reasoning_effort: str | None = Field(
        None, description="as the template knows it, such as `low`; `none` turns thinking off"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="`enable_thinking`, `reasoning_effort`, and what the model's chat template reads besides"
    )
    continue_final_message: bool | None = Field(None, description="the answer continues the assistant's last message")
    add_generation_prompt: bool | None = Field(None, description="false does not open the assistant's turn")
    prompt_cache_retention: Literal["in_memory", "24h"] | None = Field(
        None, description="`24h` evicts the prompt's prefix after those of other prompts, for so long"
    )

    harmless: ClassVar[Mapping[str, str]] = {
        **GENERATION_HARMLESS,
        "prediction": "it is about speed alone",
        "prompt_cache_key": "prefixes are found by their content",
        "prompt_cache_options": "prefixes are cached without being asked to",
        "safety_identifier": "nothing is reported",
    }
    refused: ClassVar[Mapping[str, Refusal]] = {
        "store": Refusal("answers are not kept", (False,)),
        "audio": Refusal("models answer with text"),
        "modalities": Refusal("models answer with text", (["text"],)),
        "verbosity": Refusal("ask for it in the prompt", ("medium",)),
        "web_search_options": Refusal("give the model a tool"),
        "functions": Refusal("use `tools`", ([],)),
        "function_call": Refusal("use `tool_choice`"),
        "moderation": Refusal("nothing is moderated"),
    }


class AnsweredFunction(BaseModel):
    """A function that is called, or a piece of it."""

    name: str = ""
    arguments: str = ""


class AnsweredCall(BaseModel):
    """A tool call, or a piece of it."""

    index: int = 0
    id: str = ""
    type: Literal["function"] = "function"
    function: AnsweredFunction


class AnsweredMessage(BaseModel):
    """The answer, or a piece of it."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[AnsweredCall] | None = None
    refusal: None = None


class ChatChoice(BaseModel):
    """An answer."""

    index: int = 0
    message: AnsweredMessage
    logprobs: ChatScores | None = None
    finish_reason: str


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChunkChoice(BaseModel):
    """A piece of an answer."""

    index: int = 0
    delta: AnsweredMessage
    logprobs: ChatScores | None = None
    finish_reason: str | None = None


class ChatChunk(BaseModel):
    """A piece of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
